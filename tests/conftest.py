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
    """Deselect what was not requested, as one line of the count: fuzzing, and without a GPU its tests."""
    asked = config.getoption("-m")
    names = [] if "fuzz" in asked else ["fuzz"]
    if not (asked or torch.cuda.is_available() or os.environ.get("FAIL_WITHOUT_CUDA") == "1"):
        names.append("gpu")
    left_out = {item for item in items if any(map(item.get_closest_marker, names))}
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=list(left_out))
