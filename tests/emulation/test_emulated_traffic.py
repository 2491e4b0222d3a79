"""Launches and bytes of the emulated kernels: what docs/kernels.md says must move, and no more."""

from __future__ import annotations

import pytest
from emulation_cases import PAIRS, RUN, Case

pytestmark = pytest.mark.native

BYTES = {"f64": 8, "f32": 4, "f16": 2, "bf16": 2}
NUMEL = 4099


def counted(kernels, direction: str, case: Case) -> dict[str, int]:
    kernels.set_order(0)
    kernels.take_counts()
    RUN[direction](kernels, case)
    return kernels.take_counts()


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("terms", [1, 7, 20])
@pytest.mark.parametrize("dtypes", PAIRS)
def test_forward_moves_each_byte_once(kernels, dtypes: str, terms: int, guided: bool) -> None:
    case = Case(dtypes, NUMEL, terms=terms, guided=guided, next_input="network")
    state, network = BYTES[case.state_dtype], BYTES[case.network_dtype]
    assert counted(kernels, "forward", case) == {
        "launches": 1,
        "bytes_loaded": NUMEL * (terms * state + (1 + guided) * network),
        "bytes_stored": NUMEL * (2 * state + network),
    }


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("terms", [1, 7, 9, 20])
@pytest.mark.parametrize("dtypes", PAIRS)
def test_backward_reads_only_the_state_gradient_again(kernels, dtypes: str, terms: int, guided: bool) -> None:
    case = Case(dtypes, NUMEL, terms=terms, guided=guided, grads=("data", "state"))
    state, network = BYTES[case.state_dtype], BYTES[case.network_dtype]
    groups = 1 + -(-(terms - 1) // 8)  # rows of the grid, each of which needs G
    assert counted(kernels, "backward", case) == {
        "launches": 2,
        "bytes_loaded": NUMEL * ((1 + groups + terms) * state + (1 + guided) * network),
        "bytes_stored": NUMEL * (terms * state + (1 + guided) * network),
    }


def test_backward_of_the_data_alone_is_one_launch(kernels) -> None:
    case = Case("f32_bf16", NUMEL, terms=5, grads=("state",), wanted=("output", "0"))
    assert counted(kernels, "backward", case) == {
        "launches": 1,
        "bytes_loaded": NUMEL * 4,  # G
        "bytes_stored": NUMEL * (2 + 4),
    }
