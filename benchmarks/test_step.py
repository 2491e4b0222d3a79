"""Cost of one step from Python, with small tensors and a network that costs nothing.

All sides run whole solves; the times are per step. Ours and the public code's include schedules, coefficients
and updates; those of diffusers only `step()`, with timesteps set once in advance.
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
    baselines = {
        "public code": public_sample(size, steps),
        "UniPC step()": diffusers_sample("unipc", size, steps, times_set_once=True),
        "DPM-Solver++ step()": diffusers_sample("dpmsolver++", size, steps, times_set_once=True),
    }
    function = our_sample(size, steps)
    against(function, baselines, subject="step", per=steps, size=size, steps=steps, order=steps)
