"""The layer itself: it catches every planted bug, and passes the correct twins."""

from __future__ import annotations

import re

import numpy as np
import pytest
from planted_expectations import PLANTED, WRONG

pytestmark = pytest.mark.native

ORDERS = range(8)
SANITIZED = [
    (name, build) for name, planted in PLANTED.items() for build in planted.caught if build != "plain"
]


def run(kernels, name: str, broken: bool, order: int) -> np.ndarray:
    planted = PLANTED[name]
    values = planted.values()
    kernels.set_order(order)
    count = planted.expected(values).size
    return kernels.run_planted(name, broken, values.view(np.uint8), count).view(np.float32)


def request(name: str, broken: bool, order: int) -> dict:
    values = PLANTED[name].values()
    return {
        "planted": name,
        "broken": broken,
        "order": order,
        "values": values.tolist(),
        "outputs": PLANTED[name].expected(values).size,
    }


def test_every_kernel_has_an_expectation(kernels) -> None:
    assert set(kernels.planted_names()) == set(PLANTED)
    assert all(planted.caught for planted in PLANTED.values())


@pytest.mark.parametrize("name", PLANTED)
def test_correct_twin_passes(kernels, name: str) -> None:
    expected = PLANTED[name].expected(PLANTED[name].values())
    for order in ORDERS:
        np.testing.assert_array_equal(run(kernels, name, False, order), expected)


@pytest.mark.parametrize("name", [name for name, planted in PLANTED.items() if "plain" in planted.caught])
def test_bug_is_caught(kernels, name: str) -> None:
    caught = PLANTED[name].caught["plain"]
    if caught != WRONG:
        for order in ORDERS:
            with pytest.raises(kernels.EmulationError, match=caught):
                run(kernels, name, True, order)
        return
    expected = PLANTED[name].expected(PLANTED[name].values())
    results = [run(kernels, name, True, order) for order in ORDERS]
    assert any(not np.array_equal(result, expected) for result in results)


@pytest.mark.parametrize("build", ["asan", "tsan"])
def test_correct_twins_pass_sanitized(sanitized, build: str) -> None:
    names = [name for name in PLANTED if name != "grid_too_high"]  # its 65535 blocks take a minute
    runs = [(name, order) for name in names for order in (0, 1)]
    replies = sanitized(build).run([request(name, False, order) for name, order in runs])
    for (name, _), reply in zip(runs, replies, strict=True):
        expected = PLANTED[name].expected(PLANTED[name].values())
        np.testing.assert_array_equal(np.float32(reply["result"]), expected)


@pytest.mark.parametrize(("name", "build"), SANITIZED)
def test_bug_is_caught_by_sanitizer(sanitized, name: str, build: str) -> None:
    with pytest.raises(RuntimeError) as report:
        sanitized(build).run([request(name, True, 1)])
    assert type(report.value).__name__ == "SanitizerReport"
    assert re.search(PLANTED[name].caught[build], str(report.value)), report.value
