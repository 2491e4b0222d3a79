"""All kernels, run on the CPU over everything that decides on their way through a tensor."""

from __future__ import annotations

from dataclasses import replace

import pytest
from emulation_cases import LARGE, PAIRS, SIZES, Case, variants
from emulation_checks import check_backward, check_forward

pytestmark = pytest.mark.native

# The check of each kernel, and the tensors of a guided call of it with two terms.
CHECKS = {
    "forward": (check_forward, 7),  # history, m, m_u, D_n, x_{n+1}, y
    "backward": (check_backward, 12),  # 4 inputs, 3 gradients in, x_{n+1}, 4 gradients out
}
every_kernel = pytest.mark.parametrize(("check", "tensors"), CHECKS.values(), ids=CHECKS)


@every_kernel
@pytest.mark.parametrize("numel", SIZES)
@pytest.mark.parametrize("dtypes", PAIRS)
def test_every_size(kernels, check, tensors, dtypes: str, numel: int) -> None:
    base = Case(dtypes, numel)
    for variant in variants(base):
        case = replace(base, **variant)
        check(kernels, case, order=case.seed)


@every_kernel
@pytest.mark.parametrize("dtypes", PAIRS)
def test_every_number_of_terms(kernels, check, tensors, dtypes: str) -> None:
    for terms in range(1, 65):
        check(kernels, Case(dtypes, 33, terms=terms, guided=True, next_input="network"))


@every_kernel
@pytest.mark.parametrize("phases", [*((p,) for p in range(1, 8)), (0, 1), (1, 0, 3, 2), (7, 5)])
@pytest.mark.parametrize("dtypes", PAIRS)
def test_unaligned_starts(kernels, check, tensors, dtypes: str, phases: tuple[int, ...]) -> None:
    for numel in (1, 7, 17, 257, 4097):
        for next_input in ("state", "network"):
            check(kernels, Case(dtypes, numel, guided=True, next_input=next_input, phases=phases))


@every_kernel
@pytest.mark.parametrize("next_input", ["state", "network"])
@pytest.mark.parametrize("dtypes", PAIRS)
def test_one_unaligned_tensor(kernels, check, tensors, dtypes: str, next_input: str) -> None:
    """Each tensor in turn is the only one at another phase, so none may be forgotten in the plan."""
    for j in range(tensors):
        phases = tuple(int(i == j) for i in range(tensors))
        check(kernels, Case(dtypes, 67, terms=2, guided=True, next_input=next_input, phases=phases))


@every_kernel
@pytest.mark.parametrize("blocks", [1, 2, 3, 50])
@pytest.mark.parametrize("dtypes", PAIRS)
def test_any_grid(kernels, check, tensors, dtypes: str, blocks: int) -> None:
    for numel in (1, 257, 4097, 20_011):
        for phases in ((0,), (1,), (0, 1)):
            check(kernels, Case(dtypes, numel, next_input="network", phases=phases, blocks=blocks))


@every_kernel
@pytest.mark.parametrize("dtypes", PAIRS)
def test_large(kernels, check, tensors, dtypes: str) -> None:
    check(kernels, Case(dtypes, LARGE, terms=2, guided=True, next_input="network"))
