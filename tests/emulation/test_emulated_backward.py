"""The backward kernels, run on the CPU: requests for some gradients, any order, and the bound on sums."""

from __future__ import annotations

import pytest
from emulation_cases import FIRST_WEIGHT, PAIRS, Case, make_inputs, run_backward
from emulation_checks import assert_same_bits, check_backward, check_sums

pytestmark = pytest.mark.native


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("dtypes", PAIRS)
def test_partial_requests(kernels, dtypes: str, guided: bool) -> None:
    """Missing incoming gradients and outgoing ones that are not requested: all are null pointers."""
    requests = [("output",), ("coefficients",), ("0",), ("9", "1"), ("0", "coefficients"), ("output", "10")]
    incoming = [("data",), ("state",), ("next_input",), ("data", "next_input"), ("data", "state")]
    for wanted in requests:
        for grads in incoming:
            check_backward(
                kernels,
                Case(dtypes, 257, terms=11, guided=guided, next_input="network", grads=grads, wanted=wanted),
            )


@pytest.mark.parametrize("dtypes", PAIRS)
def test_same_bits_in_any_order(kernels, dtypes: str) -> None:
    case = Case(dtypes, 30_011, terms=10, guided=True, next_input="state", phases=(1,))
    kernels.set_order(0)
    first = run_backward(kernels, case)
    for order in range(1, 9):
        kernels.set_order(order)
        assert_same_bits(run_backward(kernels, case), first)


def test_wrong_sums_are_noticed(kernels) -> None:
    """The bound is tight enough to see one lost element of ten thousand."""
    case = Case("f32_f32", 10_000, terms=1)
    inputs = make_inputs(case)
    actual = run_backward(kernels, case, inputs)["coefficients"]
    check_sums(case, inputs, actual)
    g, x = inputs.grads["state"][-1], inputs.history[0][-1]
    actual[FIRST_WEIGHT] -= g * x
    with pytest.raises(AssertionError):
        check_sums(case, inputs, actual)
