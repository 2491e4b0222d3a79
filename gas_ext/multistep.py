"""Training-free multistep solvers as tables for the fused update: UniPC and iPNDM.

Both are linear in what they keep, so that one step is one `gas_ext.ops.fused_update`, and they run in
`GASSampler` like a learned solver.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gas_ext.coefficients import (
    SolverCoefficients,
    StepWeights,
    check_prediction_type,
    data_prediction_coefficients,
    fused_rows,
)
from gas_ext.schedules import NoiseSchedule
from gas_ext.spacings import check_interval, spaced_timesteps

# Noise levels sigma / alpha that GITS (Chen et al. 2024) found for Stable Diffusion 1.5, by number of steps.
GITS_SIGMAS = {
    5: (14.6146, 4.39, 1.5286, 0.6526, 0.2667, 0.0292),
    6: (14.6146, 4.7242, 1.9132, 0.9324, 0.4557, 0.1801, 0.0292),
    7: (14.6146, 6.4477, 2.2797, 1.1629, 0.6114, 0.3058, 0.1258, 0.0292),
    8: (14.6146, 6.4477, 2.7391, 1.4467, 0.8319, 0.4936, 0.2667, 0.1258, 0.0292),
}


def gits_timesteps(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Return the GITS times of Stable Diffusion 1.5 for 5 to 8 steps, (steps + 1,) float64.

    Raises
    ------
    ValueError
        If there is no table for so many steps.
    """
    if steps not in GITS_SIGMAS:
        raise ValueError(f"There are no GITS times for {steps} steps; expected 5, 6, 7 or 8.")
    sigmas = torch.tensor(GITS_SIGMAS[steps], dtype=torch.float64)
    return schedule.inverse_lambda(-torch.log(sigmas))


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
        Last time.
    timesteps : str or sequence of float
        A spacing of `gas_ext.spacings`, or the N + 1 times themselves, decreasing.

    Raises
    ------
    ValueError
        If the order is not offered, the times do not decrease, or the schedule has alpha(1) = 0.
    """

    highest_order: int
    _place: Tensor
    prediction_type: str | None = None  # any
    guidance_scale: float | None = None

    def __init__(
        self,
        schedule: NoiseSchedule,
        steps: int,
        order: int,
        t_eps: float = 1e-3,
        timesteps: str | Sequence[float] | Tensor = "uniform",
    ) -> None:
        super().__init__()
        check_interval(schedule, steps, t_eps)
        if not 1 <= order <= self.highest_order:
            raise ValueError(
                f"order is {order}, but {type(self).__name__} has orders 1 to {self.highest_order}."
            )
        if schedule.zero_terminal_snr:
            raise ValueError(
                f"{type(self).__name__} steps in lambda, which is infinite at t = 1 on {schedule!r}; "
                "use GeneralizedSolver, whose formulas have limits there."
            )
        if isinstance(timesteps, str):
            times = spaced_timesteps(schedule, steps, t_eps, timesteps)
        else:
            times = torch.as_tensor(timesteps, dtype=torch.float64)
            if times.shape != (steps + 1,) or not bool((times.diff() < 0).all()):
                raise ValueError(f"Expected {steps + 1} decreasing timesteps, but got {times.tolist()}.")
        self.schedule = schedule
        self.steps = steps
        self.order = order
        self.t_eps = times[-1].item()
        self._times = times.cpu()
        self.register_buffer("_place", torch.empty(0), persistent=False)  # tells the device

    def timesteps(self) -> Tensor:
        """Return the times of the states: (N + 1,) float64, decreasing."""
        return self._times.to(self._place.device)

    @abstractmethod
    def weights(self) -> StepWeights:
        """Return the weights of all updates; see `StepWeights`."""

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


class UniPCSolver(MultistepSolver):
    """UniPC (Zhao et al. 2023), data prediction, predictor and corrector; NFE = steps.

    The corrected state x^c_{n+1} differs from the predicted one only by data predictions, for both start from
    sigma_{n+1} / sigma_n x^c_n. So x^c_n = x_n + sum_j k_nj D_j with predicted states x_n, and putting this
    into the predictor's next step leaves one linear combination of x_n and the data: the corrector costs no
    pass of its own. Orders fall towards the end, and the last state is not corrected, as published.

    Parameters
    ----------
    variant : str
        "bh1": B(h) = h; "bh2": B(h) = exp(h) - 1 (Zhao et al. 2023, section 3.1).
    schedule, steps, order, t_eps, timesteps
        As for `MultistepSolver`; order 1 to 4.

    Examples
    --------
    >>> solver = UniPCSolver(NoiseSchedule.vp_linear(), steps=20, order=3, timesteps="logsnr")
    >>> solver.weights().data.shape
    torch.Size([20, 4])
    """

    highest_order = 4

    def __init__(
        self,
        schedule: NoiseSchedule,
        steps: int,
        order: int = 3,
        t_eps: float = 1e-3,
        timesteps: str | Sequence[float] | Tensor = "logsnr",
        *,
        variant: str = "bh1",
    ) -> None:
        if variant not in ("bh1", "bh2"):
            raise ValueError(f"variant is {variant!r}, but must be 'bh1' or 'bh2'.")
        super().__init__(schedule, steps, order, t_eps, timesteps)
        self.variant = variant

    def weights(self) -> StepWeights:
        """Return the weights of all updates, the corrector folded in."""
        times = self._times
        lambdas, alpha = self.schedule.lambda_(times), self.schedule.alpha(times)
        ratio = torch.exp(alpha.log().diff() - lambdas.diff())  # sigma_{n+1} / sigma_n
        data = torch.zeros(self.steps, self.order + 1, dtype=torch.float64)
        correction = torch.zeros(self.order + 1, dtype=torch.float64)  # k_n, newest data first
        for n in range(self.steps):
            order = min(n + 1, self.order, self.steps - n)
            predictor, corrector = self._step(lambdas, alpha[n + 1], n, order)
            data[n] = ratio[n] * correction
            data[n, :order] += predictor
            correction = torch.zeros_like(correction)
            correction[: order + 1] = corrector
            correction[1 : order + 1] -= predictor
        return StepWeights(ratio[:, None].to(self._place.device), data.to(self._place.device))

    def _step(self, lambdas: Tensor, alpha: Tensor, n: int, order: int) -> tuple[Tensor, Tensor]:
        """Return the data weights of predictor (D_n, D_{n-1}, ...) and corrector (D_{n+1}, D_n, ...)."""
        h = lambdas[n + 1] - lambdas[n]
        past = [(lambdas[n - i] - lambdas[n]) / h for i in range(1, order)]  # r_i < 0
        first = torch.expm1(-h)
        b_of_h = -h if self.variant == "bh1" else first
        # sum_i rho_i r_i^(k-1) = k! z phi_{k+1}(z) / B(h) with z = -h, k = 1 .. order (Zhao et al., eq. 10),
        # where phi_1(z) = (exp(z) - 1) / z and z phi_{k+1}(z) = phi_k(z) - 1/k!; `phi` is z phi_{k+1}(z).
        phi, factorial, moments = first / -h - 1.0, 1.0, []
        for k in range(1, order + 1):
            moments.append(phi * factorial / b_of_h)
            factorial *= k + 1
            phi = phi / -h - 1.0 / factorial
        nodes = torch.stack([*past, torch.ones_like(h)])
        powers = torch.stack([nodes**k for k in range(order)])
        moments_tensor = torch.stack(moments)
        half = torch.full((1,), 0.5, dtype=torch.float64)  # what the paper takes for a single unknown
        rho_corrector = half if order == 1 else torch.linalg.solve(powers, moments_tensor)
        rho_predictor = half[: order - 1]
        if order > 2:
            rho_predictor = torch.linalg.solve(powers[:-1, :-1], moments_tensor[:-1])
        scale = -alpha * b_of_h
        predictor = _from_differences(-alpha * first, scale * rho_predictor / nodes[:-1])
        corrector = _from_differences(-alpha * first, scale * rho_corrector / nodes)
        return predictor, torch.cat([corrector[-1:], corrector[:-1]])

    def describe(self) -> dict[str, Any]:
        """Return plain values that say which solver this is, for manifests and tables."""
        return {**super().describe(), "variant": self.variant}


def _from_differences(newest: Tensor, weights: Tensor) -> Tensor:
    """Return weights on D_n and the others, given the weight of D_n and those of the differences to D_n."""
    return torch.cat([(newest - weights.sum())[None], weights])


class IPNDMSolver(MultistepSolver):
    """iPNDM (Zhang and Chen 2023): Adams-Bashforth in sigma / alpha with the weights of equal steps.

    x_{n+1} / alpha_{n+1} = x_n / alpha_n + (k_{n+1} - k_n) sum_j b_j eps_{n-j} with k = sigma / alpha. What
    is kept of each evaluation is the predicted noise, so `Trajectory.data` holds eps.

    Parameters
    ----------
    schedule, steps, order, t_eps, timesteps
        As for `MultistepSolver`; order 1 to 4.

    Examples
    --------
    >>> IPNDMSolver(NoiseSchedule.vp_linear(), steps=5, order=2).weights().data[1:3].signbit().tolist()
    [[True, False], [True, False]]
    """

    highest_order = 4

    def weights(self) -> StepWeights:
        """Return the weights of all updates, on the newest state and the newest predicted noises."""
        times = self.timesteps()
        alpha = self.schedule.alpha(times)
        change = alpha[1:] * torch.exp(-self.schedule.lambda_(times)).diff()
        data = torch.zeros(self.steps, self.order, dtype=torch.float64, device=times.device)
        for n in range(self.steps):
            adams = adams_bashforth(min(n + 1, self.order))
            data[n, : len(adams)] = torch.tensor(adams, dtype=torch.float64)
        return StepWeights((alpha[1:] / alpha[:-1])[:, None], change[:, None] * data)

    def stored_coefficients(self, prediction_type: str) -> tuple[Tensor, Tensor]:
        """Return p, q of the predicted noise: eps = (x - alpha D) / sigma."""
        times = self.timesteps()[:-1]
        if prediction_type == "epsilon":
            return torch.zeros_like(times), torch.ones_like(times)
        p, q = super().stored_coefficients(prediction_type)
        alpha, sigma = self.schedule.alpha(times), self.schedule.sigma(times)
        return (1.0 - alpha * p) / sigma, -alpha * q / sigma


def adams_bashforth(order: int) -> tuple[float, ...]:
    """Return the weights of the explicit Adams method of an order on equal steps, newest first.

    They integrate the polynomial through the last values over the next step: sum_j b_j (-j)^k = 1 / (k + 1).

    Examples
    --------
    >>> adams_bashforth(2)
    (1.5, -0.5)
    """
    tables = {
        1: (1,),
        2: (3, -1),
        3: (23, -16, 5),
        4: (55, -59, 37, -9),
    }
    weights = tables[order]
    return tuple(weight / sum(weights) for weight in weights)
