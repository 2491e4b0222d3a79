"""Timesteps of solvers: classical spacings, the GITS tables, and what makes timesteps learnable.

Timesteps of the states are learned as stick-breaking logits. The times at which the network is evaluated may
move freely and are kept inside the schedule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from gas_ext._utils.checks import float64_table, real_number, whole_number
from gas_ext.schedules import NoiseSchedule, check_schedule

Timesteps: TypeAlias = str | Sequence[float] | Tensor

MAX_STEPS = 10_000  # a damaged solver file may name any number, and its tables would be that large
SPACINGS = ("uniform", "quadratic", "logsnr", "edm")

# Noise levels sigma / alpha by number of steps (Chen et al. 2024), as published with the GS/GAS paper.
GITS_SIGMAS = {
    5: (14.6146, 4.39, 1.5286, 0.6526, 0.2667, 0.0292),
    6: (14.6146, 4.7242, 1.9132, 0.9324, 0.4557, 0.1801, 0.0292),
    7: (14.6146, 6.4477, 2.2797, 1.1629, 0.6114, 0.3058, 0.1258, 0.0292),
    8: (14.6146, 6.4477, 2.7391, 1.4467, 0.8319, 0.4936, 0.2667, 0.1258, 0.0292),
}
_GITS_FIRST = 14.6146

# Stick breaking takes at least this fraction of what is left, and leaves at least as much (published
# solvers).
_MARGIN = 1e-5
# No interval is shorter than this part of [t_eps, 1], so that lambda increases even at extreme logits.
_SMALLEST_GAP = 1e-11


def spaced_timesteps(schedule: NoiseSchedule, steps: int, t_eps: float, spacing: str = "uniform") -> Tensor:
    """Return the (steps + 1,) float64 timesteps of a classical spacing, from 1 to t_eps, on the CPU.

    "uniform" in t; "quadratic": uniform in sqrt(t); "logsnr": uniform in lambda (Lu et al. 2022); "edm":
    uniform in (sigma / alpha)^(1/7) (Karras et al. 2022, eq. 5). Where lambda(1) = -inf (flow), the last two
    start from 1 - min(t_eps, (1 - t_eps) / 2), and their first timestep is then set to 1.
    """
    check_interval(schedule, steps, t_eps)
    fractions = torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64, device="cpu")
    if spacing == "uniform":
        times = torch.linspace(1.0, t_eps, steps + 1, dtype=torch.float64, device="cpu")
    elif spacing == "quadratic":
        times = (1.0 + fractions * (math.sqrt(t_eps) - 1.0)) ** 2
    elif spacing in ("logsnr", "edm"):
        # 1 - t_eps, or halfway to 1 for t_eps >= 1/3, where that would leave no room.
        start = 1.0 - min(t_eps, 0.5 * (1.0 - t_eps)) if schedule.zero_terminal_snr else 1.0
        first, last = schedule.lambda_(start), schedule.lambda_(t_eps)
        if spacing == "edm":  # in k^(1/7) with k = sigma / alpha = exp(-lambda)
            first, last = torch.exp(-first / 7.0), torch.exp(-last / 7.0)
        positions = first + fractions * (last - first)
        times = schedule.inverse_lambda(-7.0 * torch.log(positions) if spacing == "edm" else positions)
    else:
        raise ValueError(f"Spacing {spacing!r} is unknown; expected one of {', '.join(SPACINGS)}.")
    times[0], times[-1] = 1.0, t_eps
    return times


def gits_timesteps(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Return the GITS timesteps of Stable Diffusion 1.5 (Chen et al. 2024), (steps + 1,) float64.

    Raises
    ------
    ValueError
        If `steps` is not 5 to 8, or the noise level of the schedule at t = 1, where all states start, differs
        from that of Stable Diffusion by more than 1 %.
    """
    if steps not in GITS_SIGMAS:
        raise ValueError(f"There are no GITS times for {steps} steps; expected 5, 6, 7 or 8.")
    first = math.inf if schedule.zero_terminal_snr else math.exp(-schedule.lambda_(1.0).item())
    if not 0.99 < first / _GITS_FIRST < 1.01:
        raise ValueError(
            f"The GITS times were found for Stable Diffusion 1.5, with sigma / alpha from {_GITS_FIRST} "
            f"(on {schedule!r} from {first:.4g}); use another spacing or pass a list of timesteps."
        )
    sigmas = torch.tensor(GITS_SIGMAS[steps], dtype=torch.float64, device="cpu")
    return schedule.inverse_lambda(-torch.log(sigmas))


def resolve_timesteps(schedule: NoiseSchedule, steps: int, t_eps: float, timesteps: Timesteps) -> Tensor:
    """Return the (steps + 1,) float64 timesteps of a spacing or "gits", or a checked list, on the CPU."""
    if isinstance(timesteps, str):
        if timesteps == "gits":
            return gits_timesteps(schedule, steps)
        return spaced_timesteps(schedule, steps, t_eps, timesteps)
    times = float64_table("timesteps", timesteps)
    if times.shape != (whole_number("steps", steps) + 1,) or not bool((times.diff() < 0).all()):
        raise ValueError(f"Expected {steps + 1} decreasing timesteps, but got {times.tolist()}.")
    check_interval(schedule, steps, times[-1].item())
    if not times[0] <= schedule.t_max:
        raise ValueError(
            f"The timesteps start at {times[0].item()}, beyond the end of {schedule!r} at {schedule.t_max}."
        )
    return times


def check_interval(schedule: NoiseSchedule, steps: int, t_eps: float) -> None:
    """Raise ValueError unless 1 <= steps <= MAX_STEPS and t_eps is inside the schedule and below 1."""
    check_schedule(schedule)
    if not 1 <= whole_number("steps", steps) <= MAX_STEPS:
        raise ValueError(f"steps is {steps}, but must be at least 1 and at most {MAX_STEPS}.")
    if not max(schedule.t_min, 0.0) <= real_number("t_eps", t_eps) < 1.0 or t_eps == schedule.t_min:
        raise ValueError(f"t_eps is {t_eps}, but on {schedule!r} must be between {schedule.t_min:g} and 1.")


def keep_inside(timesteps: Tensor, schedule: NoiseSchedule, t_eps: float) -> Tensor:
    """Return times bent smoothly into the domain of the schedule.

    From t_eps up to halfway between 1 and the upper end of the domain they are unchanged. Outside they stay
    below that end and above the middle of t_eps and the lower end. Where alpha(1) = 0, they are cut at 1.
    """
    low, high = schedule.t_min, schedule.t_max
    times = _bend(timesteps, start=0.5 * (1.0 + high), room=0.5 * (high - 1.0))
    return -_bend(-times, start=-t_eps, room=0.5 * (t_eps - low))


def _bend(x: Tensor, start: float, room: float) -> Tensor:
    """Return x up to `start`, and beyond it a smooth bend towards start + room; a plain cut if room is 0.

    The cut passes gradients through (straight-through): the first time is at the cut, where the gradient of
    clamp is 0, and its offset would never be learned. The value is exactly the clamped one.
    """
    if room <= 0.0:
        return x.clamp(max=start).detach() + (x - x.detach())
    excess = (x - start).clamp(min=0.0)
    return torch.where(x > start, start - room * torch.expm1(-excess / room), x)


def stick_breaking(logits: Tensor, t_eps: float) -> Tensor:
    """Return the (N + 1,) float64 timesteps of N - 1 logits, strictly decreasing from 1 to t_eps.

    With mu = sigmoid(logits), kept 1e-5 away from 0 and 1, the n-th timestep from the end leaves the part
    mu_0 mu_1 ... mu_{n-1} of the interval above it, so logits[0] sets the last one before t_eps.
    """
    logits = logits.to(torch.float64)
    keep = torch.sigmoid(logits) * (1.0 - 2.0 * _MARGIN) + _MARGIN
    take = torch.sigmoid(-logits) * (1.0 - 2.0 * _MARGIN) + _MARGIN
    one = logits.new_ones(1)
    left = torch.cat([one, torch.cumprod(keep, 0)])
    gaps = torch.cat([left[:-1] * take, left[-1:]]).clamp(min=_SMALLEST_GAP)
    inner = torch.cumsum(gaps, 0)[:-1] / gaps.sum()
    ascending = torch.cat([t_eps * one, t_eps + (1.0 - t_eps) * inner, one])
    return ascending.flip(0)


def inverse_stick_breaking(timesteps: Tensor) -> Tensor:
    """Return the (N - 1,) float64 logits whose `stick_breaking` gives these (N + 1,) timesteps."""
    times = timesteps.detach().to(torch.float64)
    if times.ndim != 1 or times.numel() < 2 or times[0] != 1.0 or not bool((times.diff() < 0).all()):
        raise ValueError(f"Timesteps must decrease strictly from 1, but got {times.tolist()}.")
    left = ((1.0 - times) / (1.0 - times[-1])).flip(0)  # part of the interval above each timestep
    keep = (left[1:-1] / left[:-2] - _MARGIN) / (1.0 - 2.0 * _MARGIN)
    if not bool(((keep > 0.0) & (keep < 1.0)).all()):
        raise ValueError(
            f"Timesteps {times.tolist()} are closer together than {_MARGIN:g} of the interval above them, "
            "which learnable timesteps cannot express; use fewer steps or another spacing."
        )
    return torch.logit(keep)
