"""What the emulated kernels must compute: the bits of the CPU operator, and sums within a bound."""

from __future__ import annotations

import numpy as np
import torch
from emulation_cases import (
    FIRST_WEIGHT,
    Case,
    Inputs,
    decode,
    make_inputs,
    run_backward,
    run_forward,
)

import gas_ext.ops

TORCH = {"f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def to_torch(array: np.ndarray, dtype: str) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if dtype == "bf16" else tensor


def from_torch(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def cpu_forward(case: Case, inputs: Inputs) -> dict[str, np.ndarray]:
    """Return what the CPU operator makes of the same bits."""
    assert gas_ext.ops.library.CPU_STATUS.loaded, gas_ext.ops.library.CPU_STATUS.reason
    halves = [to_torch(m, case.network_dtype) for m in reversed(inputs.outputs)]  # unconditional first
    data, state, next_input = torch.ops.gas_ext.fused_update(
        [to_torch(h, case.state_dtype) for h in inputs.history],
        torch.cat(halves),
        torch.from_numpy(inputs.coefficients),
        case.guided,
        TORCH[case.next_dtype] if case.next_input else None,
    )
    results = {"data": from_torch(data), "state": from_torch(state)}
    return {**results, "next_input": from_torch(next_input)} if case.next_input else results


def assert_same_bits(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert actual.keys() == expected.keys()
    for name, array in actual.items():
        np.testing.assert_array_equal(array.view(np.uint8), expected[name].view(np.uint8), err_msg=name)


def check_forward(kernels, case: Case, order: int = 1) -> None:
    inputs = make_inputs(case)
    kernels.set_order(order)
    assert_same_bits(run_forward(kernels, case, inputs), cpu_forward(case, inputs))


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


def check_backward(kernels, case: Case, order: int = 1) -> None:
    inputs = make_inputs(case)
    kernels.set_order(order)
    actual = run_backward(kernels, case, inputs)
    if "coefficients" in actual:
        check_sums(case, inputs, actual.pop("coefficients"))
    assert_same_bits(actual, cpu_backward(case, inputs))
