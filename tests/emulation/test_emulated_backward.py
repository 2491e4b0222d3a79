"""The backward kernels, run on the CPU: tensors' gradients as the CPU operator's, sums within a bound."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from emulation_cases import (
    FIRST_WEIGHT,
    LARGE,
    PAIRS,
    SIZES,
    Case,
    Inputs,
    decode,
    make_inputs,
    run_backward,
    variants,
)
from test_emulated_forward import assert_same_bits, from_torch, to_torch

TENSORS = 12  # of a guided backward call with two terms: 4 inputs, 3 gradients in, x_{n+1}, 4 out


def cpu_backward(case: Case, inputs: Inputs) -> dict[str, np.ndarray]:
    """Return the gradients of the tensors that the CPU operator makes of the same bits."""
    grads = {
        name: to_torch(grad, case.next_dtype if name == "next_input" else case.state_dtype)
        for name, grad in inputs.grads.items()
    }
    wanted = [int(name) for name in case.outgoing if name.isdigit()]
    grad_history, grad_output, _ = torch.ops.gas_ext.fused_update_backward(
        grads.get("data"),
        grads.get("state"),
        grads.get("next_input"),
        [to_torch(h, case.state_dtype) for h in inputs.history],
        torch.cat([to_torch(m, case.network_dtype) for m in reversed(inputs.outputs)]),
        to_torch(inputs.state, case.state_dtype),
        torch.from_numpy(inputs.coefficients),
        case.guided,
        wanted,
        "output" in case.outgoing,
        False,
    )
    results = {str(k): from_torch(grad) for k, grad in zip(wanted, grad_history, strict=True)}
    if "output" in case.outgoing:
        parts = (
            [from_torch(part) for part in grad_output.chunk(2)] if case.guided else [from_torch(grad_output)]
        )
        results.update(zip(("output_uncond", "output") if case.guided else ("output",), parts, strict=True))
    return results


def exact_sums(case: Case, inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of the coefficients in float64, and the sums of the magnitudes that go into them.

    The magnitudes are those of the same formulas with every term replaced by its absolute value: rounding
    in G, H, m~ and D_n is relative to them, also where terms cancel.
    """
    zero = np.zeros(case.numel)
    grads = {
        name: decode(grad, case.next_dtype if name == "next_input" else case.state_dtype)
        for name, grad in inputs.grads.items()
    }
    tensors = {
        "h": [decode(h, case.state_dtype) for h in inputs.history],
        "m": decode(inputs.outputs[0], case.network_dtype),
        "u": decode(inputs.outputs[1], case.network_dtype) if case.guided else None,
        "state": decode(inputs.state, case.state_dtype),
        "g": grads.get("state", zero),
        "g_data": grads.get("data", zero),
        "g_next": grads.get("next_input", zero),
    }
    c = inputs.coefficients.astype(np.float64)
    if case.dtypes != "f64_f64":
        c = c.astype(np.float32).astype(np.float64)  # as the kernels read them
    magnitudes = {
        key: [abs(t) for t in value] if isinstance(value, list) else None if value is None else abs(value)
        for key, value in tensors.items()
    }
    return sums(c, tensors, np.subtract), sums(abs(c), magnitudes, np.add)


def sums(c: np.ndarray, t: dict, subtract) -> np.ndarray:
    """Evaluate the equations of fused_update.h; `subtract` is an addition for the magnitudes."""
    p, q, w, s, c_nn = c[:FIRST_WEIGHT]
    difference = np.zeros_like(t["m"]) if t["u"] is None else subtract(t["m"], t["u"])
    m = t["m"] if t["u"] is None else t["u"] + w * difference
    x = t["h"][0]
    data = p * x + q * m
    big_g = t["g"] + s * t["g_next"]
    big_h = t["g_data"] + c_nn * big_g
    scalars = [big_h @ x, big_h @ m, q * (big_h @ difference), t["g_next"] @ t["state"], big_g @ data]
    return np.array([*scalars, *(big_g @ h for h in t["h"])])


def check_sums(case: Case, inputs: Inputs, actual: np.ndarray) -> None:
    """Bound the error of the two-stage sums.

    A thread adds at most `chain` products one after another, each with one rounding; 5 + 8 more additions
    follow in the block, the second stage is in double. G, H, m~ and D_n carry fewer than ten roundings.
    Hence |error| <= (chain + 24) u sum|a||b|, plus the rounding of the result to its dtype.
    """
    threads = 256 * (case.blocks or max(1, min(1024, -(-case.numel // (8 * 256)))))
    chain = -(-case.numel // threads) + 16
    unit = 2.0**-53 if case.dtypes == "f64_f64" else 2.0**-24
    expected, magnitude = exact_sums(case, inputs)
    bound = (chain + 24) * unit * magnitude + np.finfo(actual.dtype).eps * abs(expected)
    error = abs(actual.astype(np.float64) - expected)
    assert (error <= bound).all(), (case, error, bound)


def check(kernels, case: Case, order: int = 1) -> None:
    inputs = make_inputs(case)
    kernels.set_order(order)
    actual = run_backward(kernels, case, inputs)
    if "coefficients" in actual:
        check_sums(case, inputs, actual.pop("coefficients"))
    assert_same_bits(actual, cpu_backward(case, inputs))


@pytest.mark.parametrize("numel", SIZES)
@pytest.mark.parametrize("dtypes", PAIRS)
def test_as_cpu(kernels, dtypes: str, numel: int) -> None:
    base = Case(dtypes, numel)
    for variant in variants(base):
        case = replace(base, **variant)
        check(kernels, case, order=case.seed)


@pytest.mark.parametrize("dtypes", PAIRS)
def test_every_number_of_terms(kernels, dtypes: str) -> None:
    for terms in range(1, 65):
        check(kernels, Case(dtypes, 33, terms=terms, guided=True, next_input="network"))


@pytest.mark.parametrize("phases", [*((p,) for p in range(1, 8)), (0, 1), (1, 0, 3, 2), (7, 5)])
@pytest.mark.parametrize("dtypes", PAIRS)
def test_unaligned_starts(kernels, dtypes: str, phases: tuple[int, ...]) -> None:
    for numel in (1, 7, 17, 257, 4097):
        for next_input in ("state", "network"):
            check(kernels, Case(dtypes, numel, guided=True, next_input=next_input, phases=phases))


@pytest.mark.parametrize("next_input", ["state", "network"])
@pytest.mark.parametrize("dtypes", PAIRS)
def test_one_unaligned_tensor(kernels, dtypes: str, next_input: str) -> None:
    """Each tensor in turn is the only one at another phase, so none may be forgotten in the plan."""
    for j in range(TENSORS):
        phases = tuple(int(i == j) for i in range(TENSORS))
        check(kernels, Case(dtypes, 67, terms=2, guided=True, next_input=next_input, phases=phases))


@pytest.mark.parametrize("blocks", [1, 3, 20])
@pytest.mark.parametrize("dtypes", PAIRS)
def test_any_grid(kernels, dtypes: str, blocks: int) -> None:
    for numel in (1, 257, 4097, 20_011):
        for phases in ((0,), (1,), (0, 1)):
            check(kernels, Case(dtypes, numel, next_input="network", phases=phases, blocks=blocks))


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("dtypes", PAIRS)
def test_partial_requests(kernels, dtypes: str, guided: bool) -> None:
    """Incoming gradients that are not there, outgoing ones that nobody wants: null pointers all."""
    requests = [("output",), ("coefficients",), ("0",), ("9", "1"), ("0", "coefficients"), ("output", "10")]
    incoming = [("data",), ("state",), ("next_input",), ("data", "next_input"), ("data", "state")]
    for wanted in requests:
        for grads in incoming:
            check(
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


@pytest.mark.parametrize("dtypes", PAIRS)
def test_large(kernels, dtypes: str) -> None:
    check(kernels, Case(dtypes, LARGE, terms=2, guided=True, next_input="network"))


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
