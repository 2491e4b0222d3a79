"""How a command ends: 0 success, 1 failure with one sentence, 2 wrong usage, 130 interrupted."""

from __future__ import annotations

import functools
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import ParamSpec, TypeVar

import typer

from gas_ext._utils.progress import printable

P = ParamSpec("P")
R = TypeVar("R")

# What a shell reports for a process that Ctrl-C, or a closed pipe, has ended.
INTERRUPTED = 128 + signal.SIGINT
_PIPE_CLOSED = 128 + signal.SIGPIPE

# Errors that the user can fix (ImportError: install an extra). All others are bugs and keep their traceback.
_EXPECTED = (ValueError, TypeError, OSError, RuntimeError, ImportError)


def friendly(command: Callable[P, R]) -> Callable[P, R]:
    """Print errors that the user can fix, and warnings, as one line on standard error; errors exit with 1."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                return command(*args, **kwargs)
        except KeyboardInterrupt:
            echo("Interrupted. Nothing was written.", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except (typer.Exit, typer.Abort):  # are RuntimeErrors
            raise
        except BrokenPipeError:  # the reader of the output, such as head, has ended
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
            raise typer.Exit(_PIPE_CLOSED) from None
        except _EXPECTED as error:
            echo(f"error: {_one_line(error)}", err=True)
            raise typer.Exit(1) from None

    return run


@contextmanager
def resumable(after: str = "") -> Iterator[None]:
    """On Ctrl-C, exit with 130 and say how to resume: `after` which piece of finished work."""
    try:
        yield
    except KeyboardInterrupt:
        echo(f"Interrupted. Run the same command again to resume{after and f' after {after}'}.", err=True)
        raise typer.Exit(INTERRUPTED) from None


def echo(text: str, err: bool = False) -> None:
    """Print text in which names from files may occur; see `gas_ext._utils.progress.printable`.

    A closed pipe raises BrokenPipeError, which `friendly` handles; for messages it is ignored.
    """
    with suppress(BrokenPipeError) if err else nullcontext():
        typer.echo(printable(text), err=err)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    echo(f"warning: {_one_line(message)}", err=True)


def _one_line(error: Warning | Exception | str) -> str:
    return " ".join(str(error).split()) or type(error).__name__
