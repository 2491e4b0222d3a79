"""UniPC: predictor and corrector, or the predictor alone (UniP)."""

from __future__ import annotations

import torch
from torch import Tensor

from gas_ext.schedules import NoiseSchedule
from gas_ext.solvers.coefficients import StepWeights
from gas_ext.solvers.multistep import MultistepSolver, check_choice
from gas_ext.solvers.timesteps import Timesteps


class UniPCSolver(MultistepSolver):
    """UniPC (Zhao et al. 2023), data prediction, orders 1 to 4; NFE = steps.

    The corrected state x^c_{n+1} differs from the predicted one only by data predictions, because both start
    from sigma_{n+1} / sigma_n x^c_n. So x^c_n = x_n + sum_j k_nj D_j with predicted states x_n, and inserting
    this into the predictor's next step gives one linear combination of x_n and the data: the corrector needs
    no extra pass. The order decreases in the last steps, and the last state is not corrected, as published.

    Parameters
    ----------
    variant : str
        "bh1" (default): B(h) = h; "bh2": B(h) = exp(h) - 1 (Zhao et al. 2023, section 3.1).
    corrector : bool
        False selects the predictor alone, UniP. Default: True.
    schedule, steps, order, t_eps, timesteps
        As for `MultistepSolver`; order 1 to 4 (default 3), timesteps "logsnr" by default.

    Examples
    --------
    >>> solver = UniPCSolver(NoiseSchedule.vp_linear(), steps=20, order=3, timesteps="logsnr")
    >>> solver.weights().data.shape
    torch.Size([20, 4])
    """

    highest_order = 4
    options = ("variant", "corrector")

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
        super().__init__(schedule, steps, order, t_eps, timesteps)
        self.variant = check_choice("variant", variant, ("bh1", "bh2"))
        self.corrector = corrector

    def _compute_weights(self) -> StepWeights:
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
        half = torch.full((1,), 0.5, dtype=torch.float64)  # the paper's choice for a single unknown
        rho_corrector = half if order == 1 else torch.linalg.solve(powers, moments_tensor)
        rho_predictor = half[: order - 1]
        if order > 2:
            rho_predictor = torch.linalg.solve(powers[:-1, :-1], moments_tensor[:-1])
        scale = -alpha * b_of_h
        predictor = _from_differences(-alpha * first, scale * rho_predictor / nodes[:-1])
        corrector = _from_differences(-alpha * first, scale * rho_corrector / nodes)
        return predictor, torch.cat([corrector[-1:], corrector[:-1]])


def _from_differences(newest: Tensor, weights: Tensor) -> Tensor:
    """Return weights of D_n and the others from the weights of D_n and of the differences to it."""
    return torch.cat([(newest - weights.sum())[None], weights])
