"""Every benchmark row names its peer, measured in the same test, and carries the ratio of medians."""

import statistics
import time

import pytest
import torch

SIZES = ((1, 3, 32, 32), (24, 3, 32, 32), (64, 3, 64, 64))


def size_name(size):
    return "x".join(map(str, size))


def median_seconds(function, budget=0.25, least=5):
    """Median time of single calls over about `budget` seconds, after two warm-up calls."""
    function()
    function()
    times, end = [], time.perf_counter() + budget
    while len(times) < least or time.perf_counter() < end:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@pytest.fixture
def against(benchmark):
    """Benchmark a function and, before and after it, its peer; a ratio below 1 is faster than the peer."""

    def run(function, peer, peer_name):
        before = median_seconds(peer)
        benchmark.pedantic(function, rounds=rounds_for(function), warmup_rounds=2)
        after = median_seconds(peer)
        benchmark.extra_info["peer"] = peer_name
        benchmark.extra_info["threads"] = torch.get_num_threads()
        if benchmark.stats is not None:
            peer_median = statistics.mean((before, after))
            benchmark.extra_info["peer_median_us"] = round(peer_median * 1e6, 2)
            benchmark.extra_info["ratio"] = round(benchmark.stats.stats.median / peer_median, 3)

    return run


def rounds_for(function, budget=0.5):
    """Rounds that take about `budget` seconds, 5 to 2000."""
    return int(min(max(budget / max(median_seconds(function, budget=0.05), 1e-7), 5), 2000))


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    """Print the ratios below pytest-benchmark's own table, which does not show extra_info."""
    session = getattr(config, "_benchmarksession", None)
    rows = [bench for bench in getattr(session, "benchmarks", []) if bench.extra_info.get("ratio")]
    if not rows:
        return
    terminalreporter.section("ratio of medians: row / peer (below 1: the row is faster)")
    width = max(len(bench.name) for bench in rows)
    for bench in rows:
        microseconds = bench.stats.median * 1e6
        terminalreporter.write_line(
            f"{bench.name:{width}}  {microseconds:11.1f} us  {bench.extra_info['ratio']:7.3f}  "
            f"of {bench.extra_info['peer']}"
        )
