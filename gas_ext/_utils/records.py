"""Records in files: JSON that is read within limits and checked against a table of fields and bounds.

Every format has one such table. Nothing is built from a field before the field is checked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

MOST = 1e300  # the default bound of numbers, which leaves out infinity, NaN and integers beyond float64
MOST_SIZE = 2**40  # of a count or a size

_MISSING = object()


class Field(NamedTuple):
    """What a field of a record may hold.

    `types` are exact: True is not an int, and NoneType makes the value optional. Bounds are inclusive. `each`
    is the field of every entry of a list or dict, `inside` the fields of a dict.

    >>> list(Field((list,), each=Field((int,), 1)).faults([3, 0], "shape"))
    ['shape[1] is 0, but must be an int of at least 1']
    """

    types: tuple[type, ...]
    low: float = -MOST
    high: float = MOST
    each: Any = None  # Field
    inside: Mapping[str, Any] = {}  # of Field

    def faults(self, value: Any, name: str) -> Iterator[str]:
        """Yield the faults of a value."""
        if value is _MISSING:
            yield f"{name} is missing"
        elif not self._fits(value):
            yield f"{name} is {shown(value)}, but must be {self._wanted()}"
        elif isinstance(value, dict):
            for key, field in self.inside.items():
                yield from field.faults(value.get(key, _MISSING), f"{name}.{key}")
        if self.each is not None and isinstance(value, list | dict):
            entries: Any = value.items() if isinstance(value, dict) else enumerate(value)
            for key, entry in entries:
                yield from self.each.faults(entry, f"{name}[{shown(key)}]")

    def _fits(self, value: Any) -> bool:
        in_bounds = not isinstance(value, int | float) or self.low <= value <= self.high
        return type(value) in self.types and in_bounds

    def _wanted(self) -> str:
        names = " or ".join("None" if t is type(None) else t.__name__ for t in self.types)
        bounds = [f"at least {self.low:g}"] if self.low > -MOST else []
        bounds += [f"at most {self.high:g}"] if self.high < MOST else []
        article = "an" if names[0] in "aeiou" else "a"
        return f"{article} {names} of {' and '.join(bounds)}" if bounds else f"{article} {names}"


Fields = Mapping[str, Field]

TEXT, FLAG, RECORD = Field((str,)), Field((bool,)), Field((dict,))
OPTIONAL_TEXT, OPTIONAL_RECORD = Field((str, type(None))), Field((dict, type(None)))
NUMBER, OPTIONAL_NUMBER = Field((int, float)), Field((int, float, type(None)))
COUNT, SIZE = Field((int,), 0, MOST_SIZE), Field((int,), 1, MOST_SIZE)
SHAPE = Field((list,), each=SIZE)


def parse_json(text: str | bytes, source: object) -> Any:
    """Return the parsed JSON; ValueError, in one sentence, if it is invalid or nested too deeply."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is damaged: its description is not JSON ({error}).") from error


def check_record(record: Any, fields: Fields, source: object) -> dict[str, Any]:
    """Return a record with the fields of a table, and maybe others; ValueError names the first fault.

    >>> check_record({"steps": 4, "note": ""}, {"steps": SIZE}, "solver.safetensors")
    {'steps': 4, 'note': ''}
    """
    if type(record) is not dict:
        raise ValueError(f"{source} is damaged: its description is not a JSON object.")
    for name, field in fields.items():
        for fault in field.faults(record.get(name, _MISSING), repr(name)):
            raise ValueError(f"{source} is damaged: its field {fault}.")
    return record


def reason_of(error: BaseException, length: int = 300) -> str:
    """Return the message of an error as part of a sentence: on one line, shortened, without a period.

    >>> reason_of(ValueError("It is too wide."))
    'It is too wide'
    """
    text = " ".join(str(error).split())
    return (text if len(text) <= length else f"{text[:length]}...").rstrip(".") or type(error).__name__


def shown(value: Any, length: int = 80) -> str:
    """Return the repr of a value for a message, shortened.

    >>> shown("x" * 100, 10)
    "'xxxxxx..."
    """
    try:
        text = repr(value)
    except ValueError:  # Python does not write integers of more than 4300 digits
        text = f"an integer of {value.bit_length()} bits" if isinstance(value, int) else type(value).__name__
    return text if len(text) <= length else f"{text[: length - 3]}..."
