"""Median times of single calls, and a description of the machine."""

from __future__ import annotations

import ctypes
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

import gas_ext
from gas_ext.ops import info

ROUND_SECONDS = 5e-5  # shorter calls are timed several at once, so that the clock costs nothing
MOST_ROUNDS = 2000
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt


def keep_freed_memory(keep: bool) -> None:
    """Make glibc keep freed large blocks for the next results, or return them to the system at once.

    By default this depends on the top of the heap, that is, on chance. Getting a block back page by page
    takes several times as long as filling it, and no ratio should depend on that.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, 2**31 - 1 if keep else 128 * 1024)
        mallopt(_MMAP_THRESHOLD, 2**30 if keep else 128 * 1024)


class Timing(NamedTuple):
    """Seconds of one call: the median over rounds, the distance of the quartiles, and the shortest."""

    median: float
    iqr: float
    least: float


class Repeated:
    """A function that does `repeats` pieces of work per call, which excludes the cost of the call."""

    def __init__(self, function: Callable[[], object], repeats: float) -> None:
        self.function = function
        self.repeats = repeats

    def __call__(self) -> object:
        """Call the function once."""
        return self.function()


def plan(function: Callable[[], object], budget: float, least: int) -> tuple[int, int]:
    """Return rounds and calls per round that take about `budget` seconds, after a call to warm up."""
    function()
    start = time.perf_counter()
    function()
    single = max(time.perf_counter() - start, 1e-8)
    calls = max(1, int(ROUND_SECONDS / single))
    rounds = int(budget / (calls * single))
    return min(max(rounds, least), MOST_ROUNDS), calls


def measure(function: Callable[[], object], budget: float, least: int = 5) -> Timing:
    """Time a function for about `budget` seconds, and `least` rounds at least."""
    rounds, calls = plan(function, budget, least)
    pieces = calls * getattr(function, "repeats", 1)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            function()
        times.append((time.perf_counter() - start) / pieces)
    return summary(times)


def summary(times: list[float]) -> Timing:
    """Median, interquartile range and minimum of some times."""
    low, _, high = statistics.quantiles(times, n=4) if len(times) > 1 else (0.0, 0.0, 0.0)
    return Timing(statistics.median(times), high - low, min(times))


def last_level_cache() -> int:
    """Bytes of the largest cache of the first processor; 32 MiB if the system does not report it."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        unit = {"K": 1 << 10, "M": 1 << 20}.get(text[-1], 1)
        sizes.append(int(text.rstrip("KM")) * unit)
    return max(sizes, default=32 << 20)


def software() -> dict[str, Any]:
    """Versions and settings that a time depends on."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("diffusers", "torchmetrics"):
        try:
            versions[name] = __import__(name).__version__
        except ImportError:
            versions[name] = "not installed"
    return {
        "gas_ext": gas_ext.__version__,
        "kernels": info(),
        "versions": versions,
        "threads": torch.get_num_threads(),
        "last_level_cache": last_level_cache(),
    }
