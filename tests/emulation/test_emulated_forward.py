"""The forward kernels, run on the CPU: in any order of the threads, and on extreme values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from emulation_cases import PAIRS, Case, encode, make_inputs, run_forward
from emulation_checks import check_forward, cpu_forward, to_torch

pytestmark = pytest.mark.native


@pytest.mark.parametrize("dtypes", PAIRS)
def test_any_order(kernels, dtypes: str) -> None:
    for order in range(8):
        check_forward(kernels, Case(dtypes, 4097, guided=True, next_input="state", phases=(1,)), order)


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
