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
    free_network,
    our_sample,
    public_sample,
    stack,
    thorough,
    without_gradient,
)
from peers import diffusers_scheduler, diffusers_solve, restart


def diffusers_steps(name, size, steps):
    """All `step()` calls of a solve, or None without diffusers."""
    try:
        scheduler = diffusers_scheduler(name)
    except ImportError:
        return None
    scheduler.set_timesteps(steps)
    output, noise = free_network(size)(None, None), stack(1, size)[0]

    def call():
        restart(scheduler)
        diffusers_solve(scheduler, output, noise)

    return without_gradient(call)


@pytest.mark.parametrize("steps", [4, thorough(10)])
@pytest.mark.parametrize("size", [case(SMALL), thorough(TRAINING), case(LARGE)])
def test_step(against, size, steps):
    rivals = {
        "public code": public_sample(size, steps),
        "UniPC step()": diffusers_steps("unipc", size, steps),
        "DPM-Solver++ step()": diffusers_steps("dpmsolver++", size, steps),
    }
    function = our_sample(size, steps)
    against(function, rivals, subject="step", per=steps, size=size, steps=steps, order=steps)
