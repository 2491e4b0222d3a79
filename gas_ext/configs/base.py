"""The types of a config's values, its YAML, and the messages about its errors."""

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
Betas = Annotated[tuple[Decay, Decay], Field(strict=False)]  # YAML has lists, not tuples
Levels = Annotated[tuple[Rate, ...], Field(strict=False)]
TimeEpsilon = Annotated[float, Field(ge=0, lt=1)]
LossKind = Literal["gs", "gas"]


class Section(BaseModel):
    """A section of a config: no unknown keys, no silent conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


_MOST_TEXT = 1_000_000  # characters of a YAML file
# What constructing a YAML value may raise in addition to YAML's own errors.
_FAULTS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as a number, like YAML 1.2 (YAML 1.1 reads a string), and refuses aliases.

    A few nested aliases can describe values of any size.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(
                "it has aliases (*name), which are not supported, write the values themselves"
            )
        return super().compose_node(parent, index)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(text: str, source: str) -> Any:
    """Parse YAML; ValueError if it is not YAML, has aliases, or is longer than any config.

    Examples
    --------
    >>> read_yaml("rate: 1e-3", "a.yaml")
    {'rate': 0.001}
    """
    if len(text) > _MOST_TEXT:
        raise ValueError(f"{source} has {len(text):,} characters; a config has at most {_MOST_TEXT:,}.")
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not YAML: {reason_of(error)}.") from error
    except _FAULTS as error:
        reason = reason_of(error, 200)
        raise ValueError(
            f"{source} has a value that does not match its type ({type(error).__name__}: {reason})."
        ) from error


def sentence(fault: Any) -> str:
    """Return one sentence about an error of pydantic: where it is, the given value, what is expected."""
    where = ".".join(str(part) for part in fault["loc"]) or "the config"
    if fault["type"] == "extra_forbidden":
        return f"{where} is not a known setting; remove it."
    if fault["type"] == "missing":
        return f"{where} is missing; add it."
    if fault["type"] == "model_type":
        return f"{where} is {shown(fault['input'])}: expected a mapping of settings."
    reason = fault["msg"].removeprefix("Value error, ").rstrip(".")
    return f"{where} is {shown(fault['input'])}: {reason[0].lower()}{reason[1:]}."
