"""How a command ends: 0 done, 1 failed with one sentence, 2 wrong usage, 130 interrupted."""

from __future__ import annotations

import functools
import signal
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import typer

from gas_ext._utils.progress import printable

P = ParamSpec("P")
R = TypeVar("R")

INTERRUPTED = 128 + signal.SIGINT  # what a shell reports for a process ended by Ctrl-C

# What a user can set right (ImportError: an extra to install); anything else is a fault of the program and
# keeps its traceback.
_EXPECTED = (ValueError, TypeError, OSError, RuntimeError, ImportError)


def friendly(command: Callable[P, R]) -> Callable[P, R]:
    """Turn the errors a user can set right into one line on standard error and exit code 1.

    Warnings become one line there too.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                return command(*args, **kwargs)
        except KeyboardInterrupt:
            typer.echo("interrupted: nothing was written", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except _EXPECTED as error:
            # typer.Exit is a RuntimeError and carries its own exit code.
            if isinstance(error, typer.Exit | typer.Abort):
                raise
            echo(f"error: {_one_line(error)}", err=True)
            raise typer.Exit(1) from None

    return run


def echo(text: str, err: bool = False) -> None:
    """Print text in which names from files may occur; see `gas_ext._utils.progress.printable`."""
    typer.echo(printable(text), err=err)


def _show_warning(message: Warning | str, *place: object, **more: object) -> None:
    echo(f"warning: {_one_line(message)}", err=True)


def _one_line(error: Warning | Exception | str) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__
