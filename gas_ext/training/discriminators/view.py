"""What a discriminator is shown besides a sample: what the teacher would change in it."""

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
    """A sample beside the teacher's corrections to it, taken for an image with a little noise.

    For each noise level k, with t such that sigma(t) / alpha(t) = k, the channels (D(alpha x, t) - x) / k
    follow those of the sample x. Taken at a small k, they are large wherever a student with too few steps
    left noise; at larger k, where shapes are not the data's. A discriminator that starts from random weights
    would need many iterations to see either.

    No noise is added, so that real samples have one view each. The teacher is asked without guidance.

    Parameters
    ----------
    denoiser : Denoiser
        The teacher; nothing of it learns.
    noise_levels : sequence of float
        The levels k, greater than 0 and within the schedule; data are taken to be of order 1.
    recompute : bool
        Evaluate the network again in the backward pass instead of keeping its activations; see `GASSampler`.

    Attributes
    ----------
    sample_shape : tuple of int
        Shape of what is shown, for the discriminator: (1 + number of levels) times the channels.

    Raises
    ------
    ValueError
        If there is no level, or one is not within the schedule.

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
                f"from {low:.4g} to {high:.4g}, where {schedule!r} begins and ends."
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
        """Return (B, *sample_shape) for samples of the teacher's shape; gradients reach the samples.

        Parameters
        ----------
        samples : Tensor
            (B, C, ...).
        condition : optional
            The samples' conditions, as for `GASSampler`.
        """
        condition = self.denoiser.encode_condition(condition)
        shown = [samples]
        for level in self._levels:
            if self.recompute and torch.is_grad_enabled():
                shown.append(checkpoint(self._correction, samples, condition, level, use_reentrant=False))
            else:
                shown.append(self._correction(samples, condition, level))
        return torch.cat(shown, dim=1)

    def _correction(self, samples: Tensor, condition: Condition, level: _Level) -> Tensor:
        """Return (D(alpha x, t) - x) / k."""
        state = level.alpha * samples
        output: Tensor = self.denoiser(state, level.time.to(samples.device), condition)
        data = level.p * state + level.q * output.to(samples.dtype)
        return (data - samples) / level.noise
