"""UniPC: predictor and corrector, or the predictor alone (UniP)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gas_ext.schedules import NoiseSchedule
from gas_ext.solvers.coefficients import StepWeights
from gas_ext.solvers.multistep import MultistepSolver, Timesteps


class UniPCSolver(MultistepSolver):
    """UniPC (Zhao et al. 2023), data prediction, orders 1 to 4; NFE = steps.

    The corrected state x^c_{n+1} differs from the predicted one only by data predictions, for both start from
    sigma_{n+1} / sigma_n x^c_n. So x^c_n = x_n + sum_j k_nj D_j with predicted states x_n, and putting this
    into the predictor's next step leaves one linear combination of x_n and the data: the corrector costs no
    pass of its own. Orders fall towards the end, and the last state is not corrected, as published.

    Parameters
    ----------
    variant : str
        "bh1": B(h) = h; "bh2": B(h) = exp(h) - 1 (Zhao et al. 2023, section 3.1).
    corrector : bool
        False for the predictor alone, UniP.
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
        timesteps: Timesteps = "logsnr",
        *,
        variant: str = "bh1",
        corrector: bool = True,
    ) -> None:
        if variant not in ("bh1", "bh2"):
            raise ValueError(f"variant is {variant!r}, but must be 'bh1' or 'bh2'.")
        super().__init__(schedule, steps, order, t_eps, timesteps)
        self.variant = variant
        self.corrector = corrector

    def _compute_weights(self) -> StepWeights:
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
            if not self.corrector:
                continue
            correction = torch.zeros_like(correction)
            correction[: order + 1] = corrector
            correction[1 : order + 1] -= predictor
        return StepWeights(ratio[:, None], data)

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
        return {**super().describe(), "variant": self.variant, "corrector": self.corrector}


def _from_differences(newest: Tensor, weights: Tensor) -> Tensor:
    """Return weights on D_n and the others, given the weight of D_n and those of the differences to D_n."""
    return torch.cat([(newest - weights.sum())[None], weights])
