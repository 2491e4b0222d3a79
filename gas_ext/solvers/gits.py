"""The times that GITS (Chen et al. 2024) found for Stable Diffusion 1.5."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gas_ext.schedules import NoiseSchedule

# Noise levels sigma / alpha by number of steps, as published with the GS/GAS paper.
GITS_SIGMAS = {
    5: (14.6146, 4.39, 1.5286, 0.6526, 0.2667, 0.0292),
    6: (14.6146, 4.7242, 1.9132, 0.9324, 0.4557, 0.1801, 0.0292),
    7: (14.6146, 6.4477, 2.2797, 1.1629, 0.6114, 0.3058, 0.1258, 0.0292),
    8: (14.6146, 6.4477, 2.7391, 1.4467, 0.8319, 0.4936, 0.2667, 0.1258, 0.0292),
}
_FIRST = 14.6146


def gits_timesteps(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Return the GITS times of Stable Diffusion 1.5 for 5 to 8 steps, (steps + 1,) float64.

    Raises
    ------
    ValueError
        If there is no table for so many steps, or the schedule is not that of Stable Diffusion: its noise
        level at t = 1 must be that of the table within 1 %, for all states start there.
    """
    if steps not in GITS_SIGMAS:
        raise ValueError(f"There are no GITS times for {steps} steps; expected 5, 6, 7 or 8.")
    first = math.inf if schedule.zero_terminal_snr else math.exp(-schedule.lambda_(1.0).item())
    if not 0.99 < first / _FIRST < 1.01:
        raise ValueError(
            f"The GITS times were found for Stable Diffusion 1.5, where sigma / alpha starts at {_FIRST}, "
            f"but on {schedule!r} it starts at {first:.4g}; use another spacing, or give the times as a list."
        )
    sigmas = torch.tensor(GITS_SIGMAS[steps], dtype=torch.float64, device="cpu")
    return schedule.inverse_lambda(-torch.log(sigmas))
