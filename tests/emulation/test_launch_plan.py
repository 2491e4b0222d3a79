"""Alignment, grid and workspace sizes as plain functions, with sizes that no test could allocate."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.native

HUGE = [2**31 - 1, 2**31, 2**31 + 5, 2**33 + 1, 2**40 + 3]
WIDTHS = [2, 4, 8]  # elements in 16 bytes of double, float, half
BASE = 1 << 40


def plan_at(kernels, numel: int, width: int, element: int, *phases: int):
    """Plan for tensors of `element` bytes that start `phases` elements after an aligned address."""
    return kernels.make_plan(numel, width, [(BASE + phase * element, element) for phase in phases])


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("numel", [0, 1, 7, 8, 9, 4097, *HUGE])
def test_parts_cover_every_element_once(kernels, numel: int, width: int) -> None:
    for phase in range(width):
        plan = plan_at(kernels, numel, width, 16 // width, phase, phase)
        tail = numel - plan.head - plan.vectors * width
        assert plan.width == width
        assert plan.head == min(numel, (width - phase) % width)
        assert 0 <= tail < width
        assert plan.scalars(numel) == plan.head + tail
        if plan.vectors:
            assert (BASE + (phase + plan.head) * (16 // width)) % 16 == 0


@pytest.mark.parametrize("width", WIDTHS)
def test_unequal_phases_are_scalars(kernels, width: int) -> None:
    plan = plan_at(kernels, 2**31 + 5, width, 16 // width, 0, 1)
    assert (plan.head, plan.vectors, plan.scalars(2**31 + 5)) == (0, 0, 2**31 + 5)


def test_dtypes_of_unequal_size_align_by_element(kernels) -> None:
    """Four floats at 16 bytes and four halves at 8 bytes: the same elements are aligned."""
    assert kernels.make_plan(100, 4, [(BASE + 12, 4), (BASE + 6, 2)]).head == 1
    assert kernels.make_plan(100, 4, [(BASE, 4), (BASE + 8, 2)]).vectors == 25
    assert kernels.make_plan(100, 4, [(BASE, 4), (BASE + 2, 2)]).vectors == 0


def test_null_pointers_do_not_count(kernels) -> None:
    assert kernels.make_plan(100, 4, [(0, 4), (BASE + 4, 4), (0, 2)]).head == 3


def test_address_between_elements_is_scalar(kernels) -> None:
    assert kernels.make_plan(100, 4, [(BASE + 2, 4), (BASE + 2, 4)]).vectors == 0


@given(
    numel=st.integers(0, 2**45), width=st.sampled_from(WIDTHS), phases=st.lists(st.integers(0, 7), min_size=1)
)
def test_plan_properties(kernels, numel: int, width: int, phases: list[int]) -> None:
    plan = plan_at(kernels, numel, width, 16 // width, *phases)
    common = len({phase % width for phase in phases}) == 1
    assert plan.scalars(numel) + plan.vectors * width == numel
    assert plan.scalars(numel) < 2 * width if common else plan.vectors == 0


@pytest.mark.parametrize("most", [1, 1024, 8192])
@pytest.mark.parametrize("numel", [0, 1, 255, 256, 257, 4097, *HUGE])
def test_grid_is_just_large_enough(kernels, numel: int, most: int) -> None:
    threads = kernels.BLOCK_THREADS
    for plan in (plan_at(kernels, numel, 4, 4, 0), plan_at(kernels, numel, 4, 4, 0, 1)):
        items = max(plan.vectors, plan.scalars(numel))
        blocks = kernels.blocks_for(plan, numel, most)
        assert 1 <= blocks <= most
        assert blocks * threads >= items or blocks == most
        assert blocks == 1 or (blocks - 1) * threads < items


def test_one_row_of_blocks_for_each_group_of_terms(kernels) -> None:
    group = kernels.TERMS_PER_GROUP
    for terms in range(1, 65):
        rows = kernels.backward_groups(terms)
        assert (rows - 1) * group >= terms - 1
        assert rows == 1 or (rows - 2) * group < terms - 1


@pytest.mark.parametrize("numel", [0, 1, 255, 256, 257, 300_000, *HUGE])
@pytest.mark.parametrize("terms", [1, 8, 9, 64])
def test_workspace_holds_any_plan(kernels, numel: int, terms: int) -> None:
    """One number for each coefficient and block, whatever the alignment and dtype turn out to be."""
    elements = kernels.cuda_workspace_elements(numel, terms)
    assert elements % (kernels.FIRST_WEIGHT + terms) == 0
    for width in WIDTHS:
        for phases in ((0,), (1, 1), (0, 1)):
            plan = plan_at(kernels, numel, width, 16 // width, *phases)
            blocks = kernels.blocks_for(plan, numel, kernels.MAX_REDUCTION_BLOCKS)
            assert elements >= blocks * (kernels.FIRST_WEIGHT + terms)
