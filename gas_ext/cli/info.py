"""`gas-ext info`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gas_ext.cli.errors import echo, friendly

EPILOG = "Examples:  gas-ext info  |  gas-ext info --json"


@friendly
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print what is installed, how it was built, and whether the compiled operators are loaded."""
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


def _flatten(record: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return dotted names and printable values of a nested dictionary."""
    lines: list[tuple[str, str]] = []
    for name, value in record.items():
        if isinstance(value, dict):
            lines += _flatten(value, f"{prefix}{name}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            lines.append((prefix + name, text))
    return lines
