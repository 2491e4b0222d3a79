"""What all training-free solvers have in common: fixed times, and weights that follow from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from gas_ext._utils.checks import default_device, float64_table, whole_number
from gas_ext._utils.torch_private import is_intercepted
from gas_ext.schedules import NoiseSchedule, check_schedule
from gas_ext.solvers.coefficients import (
    SolverCoefficients,
    StepWeights,
    check_prediction_type,
    data_prediction_coefficients,
    fused_rows,
)
from gas_ext.solvers.gits import gits_timesteps
from gas_ext.solvers.timesteps import check_interval, spaced_timesteps

Timesteps: TypeAlias = str | Sequence[float] | Tensor


class MultistepSolver(nn.Module, ABC):
    """A fixed linear multistep solver: one network evaluation and one fused update per step.

    Parameters
    ----------
    schedule : NoiseSchedule
        Schedule of the states.
    steps : int
        Number N of network evaluations, at least 1.
    order : int
        Highest order; the first steps use what history there is.
    t_eps : float
        Last time, where the times do not bring their own.
    timesteps : str or sequence of float
        A spacing of `gas_ext.solvers.timesteps`, "gits" (`gits_timesteps`), or the N + 1 times themselves,
        decreasing. The last two have their own last time.

    Raises
    ------
    ValueError
        If the order is not offered, the times do not decrease inside the schedule, or the solver steps in
        lambda on a schedule with alpha(1) = 0.
    """

    highest_order: int
    lowest_order = 1
    steps_in_lambda = True
    _place: Tensor
    prediction_type: str | None = None  # any
    guidance_scale: float | None = None

    def __init__(
        self,
        schedule: NoiseSchedule,
        steps: int,
        order: int,
        t_eps: float = 1e-3,
        timesteps: Timesteps = "uniform",
    ) -> None:
        super().__init__()
        check_schedule(schedule)
        if not self.lowest_order <= whole_number("order", order) <= self.highest_order:
            raise ValueError(
                f"order is {order}, but {type(self).__name__} has orders {self.lowest_order} to "
                f"{self.highest_order}."
            )
        if schedule.zero_terminal_snr and self.steps_in_lambda:
            raise ValueError(
                f"{type(self).__name__} steps in lambda, which is infinite at t = 1 on {schedule!r}; "
                "use DPM-Solver++ or GeneralizedSolver, whose formulas have limits there."
            )
        times = place_timesteps(schedule, steps, t_eps, timesteps)
        self.schedule = schedule
        self.steps = steps
        self.order = order
        self.t_eps = times[-1].item()
        self._times = times
        self._weights: StepWeights | None = None
        self.register_buffer(
            "_place", torch.empty(0, device=default_device()), persistent=False
        )  # tells the device

    def timesteps(self) -> Tensor:
        """Return the times of the states: (N + 1,) float64, decreasing."""
        return self._times.to(self._place.device)

    def weights(self) -> StepWeights:
        """Return the weights of all updates; see `StepWeights`. They are computed once."""
        weights = self._weights
        if weights is None:
            with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
                weights = self._compute_weights()
            # What a compiled graph or a FakeTensorMode makes may not outlive it.
            if not (torch.compiler.is_compiling() or is_intercepted()):
                self._weights = weights
        return StepWeights(*(table.to(self._place.device) for table in weights))

    @abstractmethod
    def _compute_weights(self) -> StepWeights:
        """Return the weights on the CPU."""

    def stored_coefficients(self, prediction_type: str) -> tuple[Tensor, Tensor]:
        """Return p, q of what is kept of each evaluation, p x + q m: the data prediction here."""
        times = self.timesteps()[:-1]
        return data_prediction_coefficients(self.schedule, times, times, prediction_type)

    def coefficients(
        self, prediction_type: str | None = None, guidance_scale: float | None = None
    ) -> SolverCoefficients:
        """Return every number of a solve; parameters as in `GeneralizedSolver.coefficients`."""
        if prediction_type is None:
            raise ValueError("This solver has no prediction type of its own; pass prediction_type.")
        check_prediction_type(self.schedule, prediction_type)
        p, q = self.stored_coefficients(prediction_type)
        times, weights = self.timesteps(), self.weights()
        return SolverCoefficients(fused_rows(p, q, weights, guidance_scale), times, times[:-1], weights)

    def describe(self) -> dict[str, Any]:
        """Return plain values that say which solver this is, for manifests and tables."""
        return {
            "kind": type(self).__name__,
            "steps": self.steps,
            "order": self.order,
            "timesteps": self._times.tolist(),
        }


class NoiseMultistepSolver(MultistepSolver):
    """A multistep solver that keeps predicted noises, so that `Trajectory.data` holds eps.

    With k = sigma / alpha the ODE is d(x / alpha) / dk = eps.
    """

    def stored_coefficients(self, prediction_type: str) -> tuple[Tensor, Tensor]:
        """Return p, q of the predicted noise: eps = (x - alpha D) / sigma."""
        times = self.timesteps()[:-1]
        if prediction_type == "epsilon":
            return torch.zeros_like(times), torch.ones_like(times)
        p, q = super().stored_coefficients(prediction_type)
        alpha, sigma = self.schedule.alpha(times), self.schedule.sigma(times)
        return (1.0 - alpha * p) / sigma, -alpha * q / sigma


def place_timesteps(schedule: NoiseSchedule, steps: int, t_eps: float, timesteps: Timesteps) -> Tensor:
    """Return the times of a spacing, or those given after checking them: (steps + 1,) float64, on the CPU.

    Raises
    ------
    ValueError
        If the spacing is unknown or does not fit, or the times do not decrease inside the schedule.

    Examples
    --------
    >>> place_timesteps(NoiseSchedule.vp_linear(), 2, 1e-3, [1.0, 0.5, 0.01]).tolist()
    [1.0, 0.5, 0.01]
    """
    if isinstance(timesteps, str) and timesteps != "gits":
        return spaced_timesteps(schedule, steps, t_eps, timesteps)
    if isinstance(timesteps, str):
        return gits_timesteps(schedule, steps)
    times = float64_table("timesteps", timesteps)
    if times.shape != (whole_number("steps", steps) + 1,) or not bool((times.diff() < 0).all()):
        raise ValueError(f"Expected {steps + 1} decreasing timesteps, but got {times.tolist()}.")
    check_interval(schedule, steps, times[-1].item())
    if not times[0] <= schedule.t_max:
        raise ValueError(f"The times begin at {times[0].item()}, but {schedule!r} ends at {schedule.t_max}.")
    return times
