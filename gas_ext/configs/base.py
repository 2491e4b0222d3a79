"""What the sections of a config are made of, and how a fault in one is told."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from gas_ext._utils.records import MOST_SIZE, reason_of, shown

Positive = Annotated[int, Field(ge=1, le=MOST_SIZE)]
Count = Annotated[int, Field(ge=0, le=MOST_SIZE)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[tuple[Decay, Decay], Field(strict=False)]  # YAML knows lists, not tuples
Levels = Annotated[tuple[Rate, ...], Field(strict=False)]
TimeEpsilon = Annotated[float, Field(ge=0, lt=1)]
LossKind = Literal["gs", "gas"]


class Section(BaseModel):
    """A part of a config: no unknown keys, no silent conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


_MOST_TEXT = 1_000_000  # characters of a YAML file
# What constructing a value of YAML may raise, besides its own errors.
_FAULTS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as a number, as YAML 1.2 does; for YAML 1.1 it is a text. Aliases are refused.

    A few nested aliases would describe values of any size.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases (*name), which are not read, write the values themselves")
        return super().compose_node(parent, index)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(text: str, source: str) -> Any:
    """Return what YAML says.

    Raises
    ------
    ValueError
        One sentence, if it is not YAML, has aliases, or is longer than any config.

    Examples
    --------
    >>> read_yaml("rate: 1e-3", "a.yaml")
    {'rate': 0.001}
    """
    if len(text) > _MOST_TEXT:
        raise ValueError(f"{source} has {len(text):,} characters, more than the {_MOST_TEXT:,} of a config.")
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not YAML: {reason_of(error)}.") from error
    except _FAULTS as error:
        reason = reason_of(error, 200)
        raise ValueError(
            f"{source} has a value that is not of its type ({type(error).__name__}: {reason})."
        ) from error


def sentence(fault: Any) -> str:
    """Say one fault that pydantic found in one sentence: where, what was given, what is expected."""
    place = ".".join(str(part) for part in fault["loc"]) or "the config"
    if fault["type"] == "extra_forbidden":
        return f"{place} is not a known setting; remove it."
    if fault["type"] == "missing":
        return f"{place} is missing; add it."
    if fault["type"] == "model_type":
        return f"{place} is {shown(fault['input'])}: expected settings by name."
    reason = fault["msg"].removeprefix("Value error, ").rstrip(".")
    return f"{place} is {shown(fault['input'])}: {reason[0].lower()}{reason[1:]}."
