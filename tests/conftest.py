"""Golden data for all tests, and a summary of how close to it they came."""

from collections import defaultdict

import pytest
from golden_data import GoldenRecord

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
