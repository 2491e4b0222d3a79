"""Progress of long work: bars on a terminal, plain log lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

Advance = Callable[..., None]  # advance(amount=1, note="")

_LOG_EVERY = 15.0  # seconds between log lines of one task


def printable(text: str) -> str:
    r"""Return text with its control characters escaped: names from files must not steer the terminal.

    >>> print(printable("red \x1b[31m"))
    red \x1b[31m
    """
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


class Reporter(Protocol):
    """Receives the progress of long-running functions."""

    def task(self, name: str, total: int) -> Any:
        """Return a context manager that yields ``advance(amount=1, note="")`` for a task of `total` units."""

    def message(self, text: str) -> None:
        """Report one line."""


class SilentReporter:
    """Reports nothing."""

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Advance]:
        """Yield a function that does nothing."""
        yield lambda amount=1, note="": None

    def message(self, text: str) -> None:
        """Do nothing."""


class LogReporter:
    """Writes one line at the start and end of a task, and every 15 seconds in between, to standard error.

    The lines in between give the time so far and an estimate of the time left.
    """

    def __init__(self, write: Callable[[str], object] | None = None) -> None:
        self._print = write or (lambda line: print(line, file=sys.stderr, flush=True))

    def _write(self, line: str) -> None:
        self._print(printable(line))

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Advance]:
        """Yield a function that counts, and now and then writes a line."""
        start = last = time.monotonic()
        done, latest = 0, ""

        def advance(amount: int = 1, note: str = "") -> None:
            nonlocal last, done, latest
            done, latest = done + amount, note
            if 0 < done < total and time.monotonic() - last > _LOG_EVERY:
                last = time.monotonic()
                taken = last - start
                left = taken / done * (total - done)
                times = f"{_duration(taken)} so far, {_duration(left)} left"
                self._write(f"{name}: {done}/{total} {note}".rstrip() + f", {times}")

        self._write(f"{name} ...")
        yield advance
        self._write(f"{name}: done in {time.monotonic() - start:.1f} s {latest}".rstrip())

    def message(self, text: str) -> None:
        """Write one line."""
        self._write(text)


def _duration(seconds: float) -> str:
    """Return a duration in words.

    >>> _duration(8.4), _duration(95), _duration(5000)
    ('8 s', '2 min', '1 h 23 min')
    """
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


class BarReporter:
    """One bar per task, drawn by rich on standard error."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Advance]:
        """Yield a function that moves the bar and shows the latest note next to it."""
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description:<28}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task(printable(name), total=total, note="")

            def advance(amount: int = 1, note: str = "") -> None:
                progress.advance(task, amount)
                if note:
                    progress.update(task, note=printable(note))

            yield advance

    def message(self, text: str) -> None:
        """Print one line."""
        self._console.print(printable(text), highlight=False, markup=False)


class _Announced:
    """Reports one line when the first task begins."""

    def __init__(self, reporter: Reporter, line: str) -> None:
        self._reporter, self._lines = reporter, [line]

    def task(self, name: str, total: int) -> Any:
        while self._lines:
            self.message(self._lines.pop())
        return self._reporter.task(name, total)

    def message(self, text: str) -> None:
        self._reporter.message(text)


def make_reporter(first: str = "") -> Reporter:
    """Return bars if standard error is a terminal of this process alone, log lines otherwise.

    The line `first`, if not empty, is reported when the first task begins.
    """
    from gas_ext._utils.processes import Launch  # imports torch

    alone = Launch.read().count == 1
    reporter: Reporter = BarReporter() if alone and sys.stderr.isatty() else LogReporter()
    return _Announced(reporter, first) if first else reporter
