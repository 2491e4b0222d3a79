"""What the sections of a config are made of, and how a fault in one is told."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
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


def sentence(fault: Any) -> str:
    """Say one fault that pydantic found in one sentence: where, what was given, what is expected."""
    place = ".".join(str(part) for part in fault["loc"]) or "the config"
    if fault["type"] == "extra_forbidden":
        return f"{place} is not a known setting; remove it."
    if fault["type"] == "missing":
        return f"{place} is missing; add it."
    if fault["type"] == "model_type":
        return f"{place} is {fault['input']!r}: expected settings by name."
    reason = fault["msg"].removeprefix("Value error, ")
    return f"{place} is {fault['input']!r}: {reason[0].lower()}{reason[1:]}."
