"""The teacher's corrections of a sample, as further input of a discriminator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gas_ext.denoisers import Condition, Denoiser
from gas_ext.solvers.coefficients import data_prediction_coefficients


class _Level(NamedTuple):
    """A noise level k: its time t, alpha(t), and D = p x + q m at t."""

    time: Tensor
    noise: float
    alpha: float
    p: float
    q: float


class TeacherView:
    """A sample together with the teacher's corrections of it at some noise levels.

    For each noise level k, with t such that sigma(t) / alpha(t) = k, the channels (D(alpha x, t) - x) / k are
    appended to those of the sample x. At a small k they are large where a student with too few steps left
    noise, at larger k where shapes are wrong. A discriminator with random weights would take many iterations
    to detect either. No noise is added, and the teacher is evaluated without guidance.

    Parameters
    ----------
    denoiser : Denoiser
        The teacher, which is not trained.
    noise_levels : sequence of float
        The levels k, greater than 0 and within the schedule, for data of order 1.
    recompute : bool
        Recompute the network's activations in the backward pass instead of storing them; see `GASSampler`.

    Attributes
    ----------
    sample_shape : tuple of int
        Shape of the view, for the discriminator: (1 + number of levels) times the channels.

    Raises
    ------
    ValueError
        If there is no level, or one is outside the schedule.

    Examples
    --------
    >>> from gas_ext import NoiseSchedule
    >>> schedule = NoiseSchedule.vp_linear()
    >>> teacher = Denoiser.from_callable(lambda x, t, condition: torch.zeros_like(x), schedule=schedule,
    ...                                  prediction_type="sample", sample_shape=(3, 8))
    >>> view = TeacherView(teacher, [0.1])
    >>> view.sample_shape, view(torch.ones(2, 3, 8), None)[0, :, 0].tolist()
    ((6, 8), [1.0, 1.0, 1.0, -10.0, -10.0, -10.0])
    """

    def __init__(self, denoiser: Denoiser, noise_levels: Sequence[float], *, recompute: bool = False) -> None:
        levels = torch.tensor(list(noise_levels), dtype=torch.float64)
        schedule = denoiser.schedule
        ends = torch.tensor([max(schedule.t_min, 0.0), 1.0], dtype=torch.float64)
        low, high = torch.exp(-schedule.lambda_(ends)).tolist()
        inside = (levels > 0) & (levels >= low) & (levels <= high) & levels.isfinite()
        if len(levels) == 0 or not bool(inside.all()):
            raise ValueError(
                f"noise_levels are {levels.tolist()}, but must be one or more numbers greater than 0 and "
                f"from {low:.4g} to {high:.4g}, the range of {schedule!r}."
            )
        times = schedule.inverse_lambda(-levels.log())
        p, q = data_prediction_coefficients(schedule, times, times, denoiser.prediction_type)
        columns = (table.tolist() for table in (levels, schedule.alpha(times), p, q))
        self._levels = [_Level(*row) for row in zip(times, *columns, strict=True)]
        self.denoiser = denoiser
        self.recompute = recompute
        channels, *axes = denoiser.sample_shape
        self.sample_shape = ((1 + len(levels)) * channels, *axes)

    def __call__(self, samples: Tensor, condition: Any = None) -> Tensor:
        """Return (B, *sample_shape) for samples (B, C, ...) with a condition; gradients reach samples."""
        condition = self.denoiser.encode_condition(condition)
        view = [samples]
        for level in self._levels:
            if self.recompute and torch.is_grad_enabled():
                view.append(checkpoint(self._correction, samples, condition, level, use_reentrant=False))
            else:
                view.append(self._correction(samples, condition, level))
        return torch.cat(view, dim=1)

    def _correction(self, samples: Tensor, condition: Condition, level: _Level) -> Tensor:
        """Return (D(alpha x, t) - x) / k."""
        state = level.alpha * samples
        output: Tensor = self.denoiser(state, level.time.to(samples.device), condition)
        data = level.p * state + level.q * output.to(samples.dtype)
        return (data - samples) / level.noise
