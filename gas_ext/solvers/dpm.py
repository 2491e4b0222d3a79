"""DPM-Solver++ (multistep), and DDIM as its first order."""

from __future__ import annotations

import torch

from gas_ext.schedules import NoiseSchedule
from gas_ext.solvers.coefficients import StepWeights, guided_weights
from gas_ext.solvers.multistep import MultistepSolver
from gas_ext.solvers.timesteps import Timesteps


class DPMSolver(MultistepSolver):
    """DPM-Solver++ multistep (Lu et al. 2022), data prediction, orders 1 to 3; NFE = steps.

    x_{n+1} = sigma_{n+1} / sigma_n x_n + alpha_{n+1} int e^(lambda - lambda_{n+1}) D(lambda) d lambda with D
    replaced by its Taylor polynomial from divided differences; see
    `gas_ext.solvers.coefficients.guided_weights`.

    Order 1 is DDIM (Song et al. 2021), which is Euler's method in sigma for EDM and in t for flow matching.
    The solver has limits where alpha(1) = 0.

    Parameters
    ----------
    lower_order_final : bool
        Lower the order to 2 and 1 in the last steps, which stabilizes solves of few steps (the default of
        DPM-Solver's code, and of diffusers below 15 steps). Default: False, as in an untrained
        `GeneralizedSolver`.
    schedule, steps, order, t_eps, timesteps
        As for `MultistepSolver`; order 1 to 3 (default 3), timesteps "logsnr" by default.

    Examples
    --------
    >>> solver = DPMSolver(NoiseSchedule.flow(), steps=2, order=1, t_eps=0.25, timesteps="uniform")
    >>> solver.weights().data[:, 0].tolist()  # x' = t'/t x + (1 - t'/t) D
    [0.375, 0.6]
    """

    highest_order = 3
    steps_in_lambda = False  # its formulas have limits at lambda = -inf
    options = ("lower_order_final",)

    def __init__(
        self,
        schedule: NoiseSchedule,
        steps: int,
        order: int = 3,
        t_eps: float = 1e-3,
        timesteps: Timesteps = "logsnr",
        *,
        lower_order_final: bool = False,
    ) -> None:
        super().__init__(schedule, steps, order, t_eps, timesteps)
        self.lower_order_final = lower_order_final

    def _compute_weights(self) -> StepWeights:
        times = self._times
        highest = min(self.order, self.steps)
        none = torch.zeros(highest, self.steps, dtype=torch.float64)
        state, data = guided_weights(self.schedule, times, none, none, highest)
        if self.lower_order_final:
            for order in range(1, highest):
                data[-order] = guided_weights(self.schedule, times, none, none, order).data[-order]
        return StepWeights(state[:, :1], data)
