"""Every row is measured beside its peers in the same test, and carries the ratios of medians.

`--benchmark-max-time` (seconds) says how long each row may take: the default, 1, is the full measurement;
below 0.5 the cases marked `thorough` are left out, so that a short run only shows that everything works.
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

SHARE = 0.3  # of the time of a row, for the row itself; as much goes to each peer
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
    """The compiled kernel of the floor; None, with a warning, without a compiler."""
    built = floor.build(tmp_path_factory.mktemp("streams"))
    if built is None:
        warnings.warn("no C++ compiler built streams.cpp: these rows have no floor", stacklevel=1)
    return built


@pytest.fixture
def memory_given_back() -> Iterator[None]:
    """Results in memory that comes from the system page by page."""
    keep_freed_memory(False)
    yield
    keep_freed_memory(True)


@pytest.fixture(autouse=True)
def compile_anew() -> None:
    """One function is compiled for many sizes: each benchmark starts without those before."""
    torch._dynamo.reset()


@pytest.fixture
def against(benchmark: Any, request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """Benchmark a function and, before and after it, its peers; a ratio below 1 is faster than the peer.

    Called as against(function, peers, subject=..., **case): peers by name, None for one that is not there.
    `per` divides all times: pieces of work (steps) in one call.
    """
    budget = SHARE * float(request.config.getoption("benchmark_max_time"))
    least = int(request.config.getoption("benchmark_min_rounds"))

    def run(function: Callable[[], object], peers: Peers, *, subject: str, per: int = 1, **case: Any) -> None:
        present = {name: peer for name, peer in peers.items() if peer is not None}
        gc.collect()  # and no more, on any side
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
    """A peer's median and spread in seconds, our median over its, and how far it moved meanwhile."""
    peer = (before.median + after.median) / 2
    return {
        "median": peer / per,
        "iqr": max(before.iqr, after.iqr) / per,
        "ratio": median / peer,
        "drift": abs(after.median - before.median) / peer,
    }


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the ratios below pytest-benchmark's own table, which does not show them."""
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
