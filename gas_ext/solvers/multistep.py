"""What all training-free solvers have in common: fixed timesteps, and weights that follow from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from gas_ext._utils.checks import default_device, whole_number
from gas_ext._utils.torch_private import is_intercepted
from gas_ext.schedules import NoiseSchedule, check_schedule
from gas_ext.solvers.coefficients import (
    SolverCoefficients,
    StepWeights,
    check_prediction_type,
    data_prediction_coefficients,
    fused_rows,
)
from gas_ext.solvers.timesteps import Timesteps, resolve_timesteps


class MultistepSolver(nn.Module, ABC):
    """A fixed linear multistep solver: one network evaluation and one fused update per step.

    Parameters
    ----------
    schedule : NoiseSchedule
        Schedule of the states.
    steps : int
        Number N of network evaluations, at least 1.
    order : int
        Highest order; the first steps use the history available to them.
    t_eps : float
        Last timestep; ignored if `timesteps` is "gits" or a list. Default: 1e-3.
    timesteps : str or sequence of float
        A spacing ("uniform", "quadratic", "logsnr", "edm"), "gits" (`gits_timesteps`), or the N + 1
        decreasing timesteps themselves.

    Raises
    ------
    ValueError
        If the solver has no such order, the timesteps do not decrease inside the schedule, or the solver
        steps in lambda and alpha(1) = 0 on this schedule.
    """

    lowest_order, highest_order = 1, 1
    steps_in_lambda = True
    options: tuple[str, ...] = ()  # further settings, as `describe` lists them
    prediction_type: str | None = None  # any
    guidance_scale: float | None = None
    _anchor: Tensor  # on the device of the solver

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
        self.schedule, self.steps, self.order = schedule, steps, order
        self._times = resolve_timesteps(schedule, steps, t_eps, timesteps)
        self.t_eps = self._times[-1].item()
        self._weights: StepWeights | None = None
        self.register_buffer("_anchor", torch.empty(0, device=default_device()), persistent=False)

    def timesteps(self) -> Tensor:
        """Return the timesteps of the states: (N + 1,) float64, decreasing."""
        return self._times.to(self._anchor.device)

    def weights(self) -> StepWeights:
        """Return the weights of all updates, computed once; see `StepWeights`."""
        weights = self._weights
        if weights is None:
            with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
                weights = self._compute_weights()
            # Tensors of a compiled graph or a FakeTensorMode must not outlive it.
            if not (torch.compiler.is_compiling() or is_intercepted()):
                self._weights = weights
        return StepWeights(*(table.to(self._anchor.device) for table in weights))

    @abstractmethod
    def _compute_weights(self) -> StepWeights:
        """Return the weights on the CPU."""

    def stored_coefficients(self, prediction_type: str) -> tuple[Tensor, Tensor]:
        """Return p, q of what is stored of each evaluation, p x + q m: here the data prediction."""
        times = self.timesteps()[:-1]
        return data_prediction_coefficients(self.schedule, times, times, prediction_type)

    def coefficients(
        self, prediction_type: str | None = None, guidance_scale: float | None = None
    ) -> SolverCoefficients:
        """Return the coefficients of all steps; parameters as in `GeneralizedSolver.coefficients`."""
        if prediction_type is None:
            raise ValueError("This solver does not know what the network predicts; pass prediction_type.")
        check_prediction_type(self.schedule, prediction_type)
        p, q = self.stored_coefficients(prediction_type)
        times, weights = self.timesteps(), self.weights()
        return SolverCoefficients(fused_rows(p, q, weights, guidance_scale), times, times[:-1], weights)

    def describe(self) -> dict[str, Any]:
        """Return plain values that identify this solver, for manifests and tables."""
        return {
            "kind": type(self).__name__,
            "steps": self.steps,
            "order": self.order,
            "timesteps": self._times.tolist(),
            **{name: getattr(self, name) for name in self.options},
        }


class NoiseMultistepSolver(MultistepSolver):
    """A multistep solver that stores noise predictions, so that `Trajectory.data` holds eps.

    With k = sigma / alpha the ODE is d(x / alpha) / dk = eps.
    """

    def stored_coefficients(self, prediction_type: str) -> tuple[Tensor, Tensor]:
        """Return p, q of the noise prediction: eps = (x - alpha D) / sigma."""
        times = self.timesteps()[:-1]
        if prediction_type == "epsilon":
            return torch.zeros_like(times), torch.ones_like(times)
        p, q = super().stored_coefficients(prediction_type)
        alpha, sigma = self.schedule.alpha(times), self.schedule.sigma(times)
        return (1.0 - alpha * p) / sigma, -alpha * q / sigma


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """Return an option of a solver; ValueError unless it is one of the choices."""
    if value not in choices:
        *others, last = map(repr, choices)
        raise ValueError(f"{name} is {value!r}, but must be {', '.join(others)} or {last}.")
    return value
