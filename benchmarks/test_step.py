"""What one step costs from Python where the tensors are small: everything, with a network that costs nothing.

All sides make whole solves; the times are those of one step. Ours and the public code's hold schedules,
coefficients and updates. diffusers' hold `step()` alone: its times are set once, outside.
"""

from __future__ import annotations

import pytest
from cases import (
    LARGE,
    SMALL,
    TRAINING,
    case,
    diffusers_sample,
    our_sample,
    public_sample,
    thorough,
)


@pytest.mark.parametrize("steps", [4, thorough(10)])
@pytest.mark.parametrize("size", [case(SMALL), thorough(TRAINING), case(LARGE)])
def test_step(against, size, steps):
    rivals = {
        "public code": public_sample(size, steps),
        "UniPC step()": diffusers_sample("unipc", size, steps, times_set_once=True),
        "DPM-Solver++ step()": diffusers_sample("dpmsolver++", size, steps, times_set_once=True),
    }
    function = our_sample(size, steps)
    against(function, rivals, subject="step", per=steps, size=size, steps=steps, order=steps)
