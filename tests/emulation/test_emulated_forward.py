"""The forward kernels, run on the CPU, against the CPU operator: the same bits, in every dtype."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from emulation_cases import LARGE, PAIRS, SIZES, Case, Inputs, encode, make_inputs, run_forward, variants

import gas_ext.ops

TENSORS = 7  # of a guided forward call with two terms: history, m, m_u, D_n, x_{n+1}, y
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


def check(kernels, case: Case, order: int = 1) -> None:
    inputs = make_inputs(case)
    kernels.set_order(order)
    assert_same_bits(run_forward(kernels, case, inputs), cpu_forward(case, inputs))


@pytest.mark.parametrize("numel", SIZES)
@pytest.mark.parametrize("dtypes", PAIRS)
def test_same_bits_as_cpu(kernels, dtypes: str, numel: int) -> None:
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


@pytest.mark.parametrize("blocks", [1, 2, 3, 50])
@pytest.mark.parametrize("dtypes", PAIRS)
def test_any_grid(kernels, dtypes: str, blocks: int) -> None:
    for numel in (1, 257, 4097, 20_011):
        for phases in ((0,), (1,), (0, 1)):
            check(kernels, Case(dtypes, numel, next_input="network", phases=phases, blocks=blocks))


@pytest.mark.parametrize("dtypes", PAIRS)
def test_any_order(kernels, dtypes: str) -> None:
    for order in range(8):
        check(kernels, Case(dtypes, 4097, guided=True, next_input="state", phases=(1,)), order)


@pytest.mark.parametrize("dtypes", PAIRS)
def test_large(kernels, dtypes: str) -> None:
    check(kernels, Case(dtypes, LARGE, terms=2, guided=True, next_input="network"))


@pytest.mark.parametrize("dtypes", PAIRS)
def test_extreme_values(kernels, dtypes: str) -> None:
    """Overflow to infinity, infinities, subnormals and signed zeros; only the payload of a NaN may differ."""
    case = Case(dtypes, 4096, next_input="network")
    inputs = make_inputs(case)
    generator = np.random.default_rng(7)
    special = [0.0, -0.0, np.inf, -np.inf, 1e-7, -3e-6, 6e4, -6e4, 1e-40, 3e38, 1.0]
    with np.errstate(over="ignore"):
        history = [encode(generator.choice(special, case.numel), case.state_dtype) for _ in range(case.terms)]
        outputs = [encode(generator.choice(special, case.numel), case.network_dtype)]
    inputs = replace(inputs, history=history, outputs=outputs)
    expected = cpu_forward(case, inputs)
    dtypes_of = {"data": case.state_dtype, "state": case.state_dtype, "next_input": case.next_dtype}
    for name, actual in run_forward(kernels, case, inputs).items():
        numbers = [to_torch(array, dtypes_of[name]) for array in (actual, expected[name])]
        nan = numbers[1].isnan()
        assert nan.any()
        assert not nan.all()
        torch.testing.assert_close(numbers[0].isnan(), nan)
        same = (numbers[0] == numbers[1]) & (numbers[0].signbit() == numbers[1].signbit())
        assert bool((same | nan).all())
