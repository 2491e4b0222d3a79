"""Where a solver's timesteps stand: classical spacings, and what makes times learnable.

Those of the states are learned as logits of stick breaking; those that the network sees may be moved freely,
and are kept inside the schedule.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gas_ext._utils.checks import real_number, whole_number
from gas_ext.schedules import NoiseSchedule, check_schedule

MAX_STEPS = 10_000  # a damaged solver file may name any number, and the tables are made by it
SPACINGS = ("uniform", "quadratic", "logsnr", "edm")

# Stick breaking never takes less than this fraction of what is left, nor leaves less (published solvers).
_MARGIN = 1e-5
# No interval is shorter than this part of [t_eps, 1], so that extreme logits still give increasing lambda.
_SMALLEST_GAP = 1e-11


def spaced_timesteps(schedule: NoiseSchedule, steps: int, t_eps: float, spacing: str = "uniform") -> Tensor:
    """Return the timesteps of a classical spacing.

    Parameters
    ----------
    schedule : NoiseSchedule
        Gives lambda for the last two spacings.
    steps : int
        Number of network evaluations, at least 1.
    t_eps : float
        Last time, inside the schedule's domain and below 1.
    spacing : str
        "uniform" in t; "quadratic": uniform in sqrt(t); "logsnr": uniform in lambda (Lu et al. 2022);
        "edm": uniform in (sigma / alpha)^(1/7) (Karras et al. 2022, eq. 5). Where lambda(1) = -inf (flow),
        the last two are laid out from 1 - min(t_eps, (1 - t_eps) / 2) and their first time is then set to 1.

    Returns
    -------
    Tensor
        (steps + 1,) float64 on the CPU, strictly decreasing from 1 to t_eps.

    Raises
    ------
    ValueError
        If the number of steps, t_eps or the name of the spacing is not as above.

    Examples
    --------
    >>> spaced_timesteps(NoiseSchedule.flow(), 2, 0.25).tolist()
    [1.0, 0.625, 0.25]
    """
    check_interval(schedule, steps, t_eps)
    fractions = torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64, device="cpu")
    if spacing == "uniform":
        times = torch.linspace(1.0, t_eps, steps + 1, dtype=torch.float64, device="cpu")
    elif spacing == "quadratic":
        times = (1.0 + fractions * (math.sqrt(t_eps) - 1.0)) ** 2
    elif spacing in ("logsnr", "edm"):
        # 1 - t_eps, but for t_eps >= 1/3 halfway to 1, so that there is room between.
        start = 1.0 - min(t_eps, 0.5 * (1.0 - t_eps)) if schedule.zero_terminal_snr else 1.0
        first, last = schedule.lambda_(start), schedule.lambda_(t_eps)
        if spacing == "edm":  # in k^(1/7) with k = sigma / alpha = exp(-lambda)
            first, last = torch.exp(-first / 7.0), torch.exp(-last / 7.0)
        places = first + fractions * (last - first)
        times = schedule.inverse_lambda(-7.0 * torch.log(places) if spacing == "edm" else places)
    else:
        raise ValueError(f"Spacing {spacing!r} is unknown; expected one of {', '.join(SPACINGS)}.")
    times[0], times[-1] = 1.0, t_eps
    return times


def check_interval(schedule: NoiseSchedule, steps: int, t_eps: float) -> None:
    """Raise ValueError unless there is a step, not too many, and t_eps lies inside the schedule, below 1."""
    check_schedule(schedule)
    if not 1 <= whole_number("steps", steps) <= MAX_STEPS:
        raise ValueError(f"steps is {steps}, but a solver needs at least one and makes at most {MAX_STEPS}.")
    if not max(schedule.t_min, 0.0) <= real_number("t_eps", t_eps) < 1.0 or t_eps == schedule.t_min:
        raise ValueError(f"t_eps is {t_eps}, but {schedule!r} needs one between {schedule.t_min:g} and 1.")


def keep_inside(timesteps: Tensor, schedule: NoiseSchedule, t_eps: float) -> Tensor:
    """Keep times that may lie anywhere inside the domain of a schedule, smoothly.

    They are left as they are from t_eps up to halfway between 1 and the upper end of the domain. Beyond, they
    bend smoothly, and stay below that end and above the middle of t_eps and the lower end. Where
    alpha(1) = 0, the domain ends at 1 and they are cut there.

    Parameters
    ----------
    timesteps : Tensor
        Any shape.
    schedule : NoiseSchedule
        Gives the domain.
    t_eps : float
        The last time.

    Returns
    -------
    Tensor
        Of the same shape, differentiable.

    Examples
    --------
    >>> times = torch.tensor([1.2, 1.0, 0.5], dtype=torch.float64)
    >>> keep_inside(times, NoiseSchedule.flow(), 1e-3).tolist()
    [1.0, 1.0, 0.5]
    """
    low, high = schedule.t_min, schedule.t_max
    times = _bend(timesteps, start=0.5 * (1.0 + high), room=0.5 * (high - 1.0))
    return -_bend(-times, start=-t_eps, room=0.5 * (t_eps - low))


def _bend(x: Tensor, start: float, room: float) -> Tensor:
    """Return x up to `start`, and beyond a smooth bend towards start + room; a plain cut if room is 0.

    The cut hands gradients through (straight-through): the first time stands on it, where the gradient of
    clamp is 0, and its offset would never be learned. The value is exactly the cut one.
    """
    if room <= 0.0:
        return x.clamp(max=start).detach() + (x - x.detach())
    excess = (x - start).clamp(min=0.0)
    return torch.where(x > start, start - room * torch.expm1(-excess / room), x)


def stick_breaking(logits: Tensor, t_eps: float) -> Tensor:
    """Return the timesteps that belong to N - 1 logits.

    With mu = sigmoid(logits) kept 1e-5 away from 0 and 1, time n-from-the-end leaves the part
    mu_0 mu_1 ... mu_{n-1} of the interval above it, so logits[0] places the last time before t_eps.

    Parameters
    ----------
    logits : Tensor
        (N - 1,), any finite or infinite values.
    t_eps : float
        The last time.

    Returns
    -------
    Tensor
        (N + 1,) float64, strictly decreasing from 1 to t_eps, differentiable.

    Examples
    --------
    >>> stick_breaking(torch.zeros(1), 0.0).tolist()
    [1.0, 0.5, 0.0]
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
    """Return the logits whose `stick_breaking` gives the timesteps.

    Parameters
    ----------
    timesteps : Tensor
        (N + 1,), strictly decreasing from 1.

    Returns
    -------
    Tensor
        (N - 1,) float64.

    Raises
    ------
    ValueError
        If the times do not decrease from 1, or two of them stand closer than stick breaking can place them.
    """
    times = timesteps.detach().to(torch.float64)
    if times.ndim != 1 or times.numel() < 2 or times[0] != 1.0 or not bool((times.diff() < 0).all()):
        raise ValueError(f"Timesteps must decrease strictly from 1, but got {times.tolist()}.")
    left = ((1.0 - times) / (1.0 - times[-1])).flip(0)  # part of the interval above each time
    keep = (left[1:-1] / left[:-2] - _MARGIN) / (1.0 - 2.0 * _MARGIN)
    if not bool(((keep > 0.0) & (keep < 1.0)).all()):
        raise ValueError(
            f"Timesteps {times.tolist()} stand closer together than {_MARGIN:g} of the interval above them, "
            "which learnable times cannot express; use fewer steps or another spacing."
        )
    return torch.logit(keep)
