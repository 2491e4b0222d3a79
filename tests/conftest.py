"""Golden data for all tests, a summary of how close to it they came, and the choice of tiers."""

import os
from collections import Counter, defaultdict

import pytest
import torch
from golden_data import GoldenRecord
from hypothesis import settings

# The same examples on each run, and no failures because a machine was busy.
settings.register_profile("seeded", derandomize=True, deadline=None)
settings.load_profile("seeded")

# --doctest-modules would import each room's conftest.py a second time, under one name.
collect_ignore_glob = ["*conftest.py"]

TIERS = ("slow", "native", "process", "browser", "fuzz", "gpu")
ALL = "All tiers except fuzz, and gpu only with a device"

_RECORD = pytest.StashKey[GoldenRecord]()
_LEFT_OUT = pytest.StashKey[Counter]()


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help=f"Run {ALL[0].lower()}{ALL[1:]}.")


def pytest_configure(config):
    config.stash[_RECORD] = defaultdict(lambda: (0.0, ""))
    config.stash[_LEFT_OUT] = Counter()


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


def pytest_unconfigure(config):
    """Say below pytest's last line which tiers were left out, and how to run them."""
    left_out = config.stash.get(_LEFT_OUT, None)
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if left_out and reporter:
        counts = ", ".join(f"{left_out[tier]} {tier}" for tier in TIERS if left_out[tier])
        reporter.write_line(f"Not run: {counts}.")
        reporter.write_line(f"One tier: pytest -m TIER. {ALL}: pytest --all.")


@pytest.hookimpl(trylast=True)  # what -k and -m left
def pytest_collection_modifyitems(config, items):
    """Deselect the tiers that were not requested."""
    skipped = _skipped_tiers(config)
    tier_of = {item: next((tier for tier in skipped if item.get_closest_marker(tier)), "") for item in items}
    named = {item for argument in config.args for item in _named(config, argument, tier_of)}
    left_out = [item for item in items if tier_of[item] and item not in named]
    config.stash[_LEFT_OUT].update(tier_of[item] for item in left_out)
    items[:] = [item for item in items if not tier_of[item] or item in named]
    config.hook.pytest_deselected(items=left_out)


def _skipped_tiers(config) -> list[str]:
    """Return the tiers that the options leave out; -m decides alone, except that fuzz must be named."""
    expression = config.getoption("-m")
    skipped = [] if "fuzz" in expression else ["fuzz"]
    if not (expression or torch.cuda.is_available() or os.environ.get("FAIL_WITHOUT_CUDA") == "1"):
        skipped.append("gpu")
    if not (expression or config.getoption("--all")):
        skipped += ["native", "process", "browser", "slow"]
    return skipped


def _named(config, argument: str, tier_of: dict[pytest.Item, str]) -> list[pytest.Item]:
    """Return the tests that run because an argument names them.

    These are the tests of a file, except gpu without a device, and everything that an argument (and -k)
    selects where nothing would run otherwise.
    """
    path = (config.invocation_params.dir / argument.partition("::")[0]).resolve()
    below = [item for item in tier_of if path == item.path or path in item.path.parents]
    if all(tier_of[item] for item in below):
        return below
    return [item for item in below if path == item.path and tier_of[item] != "gpu"]
