"""iPNDM: Adams-Bashforth as if all steps were equal."""

from __future__ import annotations

import torch

from gas_ext.solvers.coefficients import StepWeights
from gas_ext.solvers.multistep import NoiseMultistepSolver


class IPNDMSolver(NoiseMultistepSolver):
    """iPNDM (Zhang and Chen 2023): Adams-Bashforth in sigma / alpha with the weights of equal steps.

    x_{n+1} / alpha_{n+1} = x_n / alpha_n + (k_{n+1} - k_n) sum_j b_j eps_{n-j} with k = sigma / alpha;
    NFE = steps.

    Parameters
    ----------
    schedule, steps, order, t_eps, timesteps
        As for `MultistepSolver`; order 1 to 4.

    Examples
    --------
    >>> from gas_ext import NoiseSchedule
    >>> IPNDMSolver(NoiseSchedule.vp_linear(), steps=5, order=2).weights().data[1:3].signbit().tolist()
    [[True, False], [True, False]]
    """

    highest_order = 4

    def _compute_weights(self) -> StepWeights:
        times = self._times
        alpha = self.schedule.alpha(times)
        change = alpha[1:] * torch.exp(-self.schedule.lambda_(times)).diff()
        data = torch.zeros(self.steps, self.order, dtype=torch.float64)
        for n in range(self.steps):
            adams = adams_bashforth(min(n + 1, self.order))
            data[n, : len(adams)] = torch.tensor(adams, dtype=torch.float64)
        return StepWeights((alpha[1:] / alpha[:-1])[:, None], change[:, None] * data)


def adams_bashforth(order: int) -> tuple[float, ...]:
    """Return the weights of the explicit Adams method of an order on equal steps, newest value first.

    They integrate the polynomial through the last values over the next step: sum_j b_j (-j)^k = 1 / (k + 1).
    """
    weights = {1: (1,), 2: (3, -1), 3: (23, -16, 5), 4: (55, -59, 37, -9)}[order]
    return tuple(weight / sum(weights) for weight in weights)
