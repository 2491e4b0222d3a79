"""`gas-ext info`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from gas_ext.cli.errors import echo, friendly
from gas_ext.cli.options import examples

EPILOG = examples("gas-ext info", "gas-ext info --json")


@friendly
def info(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Print versions, build settings, and whether the compiled operators are loaded."""
    import json
    import platform

    import gas_ext
    from gas_ext import ops

    record: dict[str, Any] = {
        "gas_ext": gas_ext.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **ops.info(),
    }
    if as_json:
        echo(json.dumps(record, indent=2, default=str))
        return
    for name, value in _flatten(record):
        echo(f"{name:26} {value}")


def _flatten(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted names and printable values of a nested dictionary."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
