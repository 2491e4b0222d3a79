"""docs/solvers.md names every solver, and its Python runs."""

import re

import pytest
from docs_runner import Page

from gas_ext import GASSampler
from gas_ext.solvers.presets import PRESETS
from gas_ext.solvers.registry import SPACING_TITLES, names

PAGE = Page("docs/solvers.md")
QUOTED = re.findall(r"`([^`\n]+)`", PAGE.text)


@pytest.mark.parametrize("name", names())
def test_every_solver_is_described(name):
    base = re.sub(r"-bh\d$", "", name)
    if base not in QUOTED:
        assert base in ("ipndm-2", "ipndm-3")  # `ipndm-1` to `ipndm-4`
    assert name == base or name[-4:] in QUOTED


@pytest.mark.parametrize("name", [*SPACING_TITLES, *PRESETS])
def test_every_spacing_and_preset_is_described(name):
    assert name in QUOTED


def test_the_python_runs(capsys):
    found = PAGE.run("network", network=lambda x, t, condition: x)
    assert isinstance(found["sampler"], GASSampler)
    assert capsys.readouterr().out.startswith("UniPC-3 (bh2), logSNR times\neuler, ddim")
