"""The kernels under ASan + UBSan and under TSan: no report, and the same bits as in the plain build."""

from __future__ import annotations

from dataclasses import replace

import pytest
from emulation_cases import PAIRS, RUN, SIZES, Case, digest, variants

pytestmark = pytest.mark.native

Run = tuple[str, Case, int]  # direction, case, order


def sized_runs(dtypes: str) -> list[Run]:
    """Every size with a third of the variants, in turn, so that each comes up."""
    runs = []
    for i, numel in enumerate(SIZES):
        base = Case(dtypes, numel)
        for variant in variants(base)[i % 3 :: 3]:
            case = replace(base, **variant)
            runs += [(direction, case, 1 + case.seed % 3) for direction in RUN]
    return runs


def awkward_runs(dtypes: str) -> list[Run]:
    """Unaligned starts, other grids, and missing gradients."""
    base = Case(dtypes, 257, guided=True, next_input="network")
    cases = [
        *(replace(base, phases=phases) for phases in ((1,), (2,), (3,), (7,), (0, 1))),
        *(replace(base, blocks=blocks) for blocks in (2, 9)),
        replace(base, phases=(1,), terms=1, wanted=("output",), grads=("data",)),
        replace(base, phases=(1,), terms=10, wanted=("0", "9"), grads=("next_input",)),
        replace(base, numel=5, wanted=("coefficients",), grads=("state",)),
    ]
    return [(direction, case, 2) for case in cases for direction in RUN]


def short_runs(dtypes: str) -> list[Run]:
    """Few blocks, in several orders: ThreadSanitizer takes long for each."""
    case = Case(dtypes, 4097, terms=2, guided=True, next_input="network", phases=(1,))
    many = Case(dtypes, 300, terms=10, next_input="state", phases=(0, 1))
    return [
        *((direction, case, order) for direction in RUN for order in (0, 1, 2)),
        *((direction, many, 3) for direction in RUN),
    ]


RUNS = {"asan": lambda dtypes: sized_runs(dtypes) + awkward_runs(dtypes), "tsan": short_runs}


@pytest.mark.parametrize("dtypes", PAIRS)
@pytest.mark.parametrize("build", RUNS)
def test_no_report_and_same_bits(kernels, sanitized, build: str, dtypes: str) -> None:
    runs = RUNS[build](dtypes)
    expected = []
    for direction, case, order in runs:
        kernels.set_order(order)
        expected.append(digest(RUN[direction](kernels, case)))
    assert sanitized(build).digests(runs) == expected
