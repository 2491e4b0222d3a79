"""Golden data for all tests, a summary of how close to it they came, and the choice of GPU tests."""

import os
from collections import defaultdict

import pytest
import torch
from golden_data import GoldenRecord
from hypothesis import settings

# The same examples on each run, and no failures because a machine was busy.
settings.register_profile("seeded", derandomize=True, deadline=None)
settings.load_profile("seeded")

_RECORD = pytest.StashKey[GoldenRecord]()


def pytest_configure(config):
    config.stash[_RECORD] = defaultdict(lambda: (0.0, ""))


@pytest.fixture(scope="session")
def golden_record(request) -> GoldenRecord:
    """Largest error per family, printed after the run."""
    return request.config.stash[_RECORD]


def pytest_terminal_summary(terminalreporter, config):
    record = config.stash[_RECORD]
    if record:
        terminalreporter.section("golden maxima")
        for (family, quantity), (value, where) in sorted(record.items()):
            terminalreporter.write_line(f"{family:32s} {quantity:22s} {value:9.2e}  {where}")


def pytest_collection_modifyitems(config, items):
    """Leave GPU tests out, as one line of the count, where there is no GPU and nobody asked for them."""
    asked = config.getoption("-m") or os.environ.get("FAIL_WITHOUT_CUDA") == "1"
    if asked or torch.cuda.is_available():
        return
    left_out = [item for item in items if item.get_closest_marker("gpu")]
    items[:] = [item for item in items if not item.get_closest_marker("gpu")]
    config.hook.pytest_deselected(items=left_out)
