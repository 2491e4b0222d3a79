"""Every row is measured together with its peers in the same test, and stores the ratios of medians.

`--benchmark-max-time` is the time budget of each row in seconds: the default, 1, is the full measurement;
below 0.5, cases marked `thorough` are skipped, and the run only shows that everything works.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import floor
import pytest
import torch
from measuring import Timing, keep_freed_memory, measure, plan, software

from gas_ext.ops.library import CPU_STATUS

SHARE = 0.3  # of the time budget, for the row itself and for each peer
FULL_SECONDS = 0.5

Peers = Mapping[str, Callable[[], object] | None]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "thorough: only in full measurements (--benchmark-max-time >= 0.5)")
    keep_freed_memory(True)
    if not CPU_STATUS.loaded:
        raise pytest.UsageError(f"Benchmarks need the compiled operators: {CPU_STATUS.reason}.")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if float(config.getoption("benchmark_max_time")) >= FULL_SECONDS:
        return
    left_out = [item for item in items if item.get_closest_marker("thorough")]
    items[:] = [item for item in items if not item.get_closest_marker("thorough")]
    config.hook.pytest_deselected(items=left_out)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info.update(software(), full=float(config.getoption("benchmark_max_time")) >= FULL_SECONDS)


@pytest.fixture(scope="session")
def streams(tmp_path_factory: pytest.TempPathFactory) -> floor.Streams | None:
    """The compiled kernel of the floor; without a compiler None, with a warning."""
    built = floor.build(tmp_path_factory.mktemp("streams"))
    if built is None:
        warnings.warn("no C++ compiler built streams.cpp: these rows have no floor", stacklevel=1)
    return built


@pytest.fixture
def memory_given_back() -> Iterator[None]:
    """Put results into memory that the system provides page by page."""
    keep_freed_memory(False)
    yield
    keep_freed_memory(True)


@pytest.fixture(autouse=True)
def compile_anew() -> None:
    """Compile anew in each benchmark: one function is compiled for many sizes."""
    torch._dynamo.reset()


@pytest.fixture
def against(benchmark: Any, request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """Benchmark a function and, before and after it, its peers; a ratio below 1 is faster than the peer.

    Called as against(function, peers, subject=..., **case), with peers by name, None for a missing one. All
    times are divided by `per`, the pieces of work (steps) in one call.
    """
    budget = SHARE * float(request.config.getoption("benchmark_max_time"))
    least = int(request.config.getoption("benchmark_min_rounds"))

    def run(function: Callable[[], object], peers: Peers, *, subject: str, per: int = 1, **case: Any) -> None:
        present = {name: peer for name, peer in peers.items() if peer is not None}
        gc.collect()  # disabled during the measurement, on both sides
        before = {name: measure(peer, budget / 2, least) for name, peer in present.items()}
        rounds, calls = plan(function, budget, least)
        benchmark.pedantic(function, rounds=rounds, iterations=calls)
        after = {name: measure(peer, budget / 2, least) for name, peer in present.items()}
        benchmark.group = subject
        benchmark.extra_info.update(subject=subject, case=case, per=per, threads=torch.get_num_threads())
        if benchmark.stats is not None:
            median = benchmark.stats.stats.median
            benchmark.extra_info["peers"] = {
                name: _compared(median, before[name], after[name], per) for name in present
            }

    gc.disable()
    yield run
    gc.enable()


def _compared(median: float, before: Timing, after: Timing, per: int) -> dict[str, float]:
    """A peer's median and spread in seconds, our median over the peer's, and the peer's drift meanwhile."""
    peer = (before.median + after.median) / 2
    return {
        "median": peer / per,
        "iqr": max(before.iqr, after.iqr) / per,
        "ratio": median / peer,
        "drift": abs(after.median - before.median) / peer,
    }


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the ratios, which pytest-benchmark's table does not show."""
    session = getattr(config, "_benchmarksession", None)
    rows = [bench for bench in getattr(session, "benchmarks", []) if bench.extra_info.get("peers")]
    if not rows:
        return
    terminalreporter.section("median, and its ratio to each peer's (below 1: the row is faster)")
    width = max(len(bench.name) for bench in rows)
    for bench in rows:
        microseconds = bench.stats.median / bench.extra_info["per"] * 1e6
        peers = ", ".join(f"{peer['ratio']:.3f} {name}" for name, peer in bench.extra_info["peers"].items())
        terminalreporter.write_line(f"{bench.name:{width}}  {microseconds:11.1f} us  {peers}")
