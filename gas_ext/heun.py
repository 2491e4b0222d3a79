"""EDM's deterministic Heun sampler (Karras et al. 2022, algorithm 1) as a table for the fused update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gas_ext.coefficients import StepWeights
from gas_ext.multistep import MultistepSolver
from gas_ext.schedules import NoiseSchedule
from gas_ext.spacings import spaced_timesteps


class HeunSolver(MultistepSolver):
    """Heun's method of second order; N times cost 2 N - 1 network evaluations.

    Each stage is one linear combination of the two newest states and data predictions, so that Heun runs in
    `GASSampler` like a multistep solver of 2 N - 1 steps: steps 0, 2, 4, ... go to x_{n+1} by Euler, and
    steps 1, 3, 5, ... replace it by the mean of both slopes. The last step, to sigma = 0, is Euler's alone.
    So `timesteps` has every time but the first twice, and a 0 for the last state, where sigma = 0.

    With X = x / scale and u the variable of integration, dX/du = a X + b D:
    u = sigma / alpha, scale = alpha: a = 1/u, b = -1/u (what EDM uses);
    u = t, scale = 1: a = sigma'/sigma, b = alpha lambda' (the ODE in the schedule's own time).

    Parameters
    ----------
    schedule : NoiseSchedule
        Schedule of the states.
    steps : int
        Number N of times before sigma = 0.
    t_eps : float
        The last of them.
    timesteps : str or sequence of float
        A spacing of `gas_ext.spacings` for the N times, or the N times themselves, decreasing.
    variable : str
        "sigma" or "time".

    Examples
    --------
    >>> solver = HeunSolver(NoiseSchedule.edm(0.002, 80.0), steps=18)
    >>> solver.steps
    35
    """

    highest_order = 2

    def __init__(
        self,
        schedule: NoiseSchedule,
        steps: int,
        t_eps: float = 0.0,
        timesteps: str | Sequence[float] | Tensor = "uniform",
        *,
        variable: str = "sigma",
    ) -> None:
        if variable not in ("sigma", "time"):
            raise ValueError(f"variable is {variable!r}, but must be 'sigma' or 'time'.")
        if steps < 2:
            raise ValueError(f"steps is {steps}, but Heun's method needs at least 2 times.")
        if isinstance(timesteps, str):
            timesteps = spaced_timesteps(schedule, steps - 1, t_eps, timesteps)
        super().__init__(schedule, steps - 1, 2, t_eps, timesteps)
        self.variable = variable
        self._places = self._times
        # Two states stand at each time but the first, predicted and corrected; sigma = 0 has no time.
        seen = torch.cat([self._places[:1], self._places[1:].repeat_interleave(2)])
        self._times = torch.cat([seen, torch.zeros(1, dtype=torch.float64)])
        self.steps = len(seen)

    def weights(self) -> StepWeights:
        """Return the weights of all stages."""
        times = self._places
        alpha = self.schedule.alpha(times)
        one, zero = alpha.new_ones(1), alpha.new_zeros(1)
        if self.variable == "sigma":
            u = torch.exp(-self.schedule.lambda_(times))
            a, b, scale = 1.0 / u, -1.0 / u, torch.cat([alpha, one])
        else:
            u = times
            a, b = self._rates(times)
            scale = torch.ones(len(times) + 1, dtype=torch.float64)
        h = torch.cat([u, zero]).diff()
        last = len(times) - 1
        state = torch.zeros(self.steps, 2, dtype=torch.float64)
        data = torch.zeros(self.steps, 2, dtype=torch.float64)
        for n in range(last + 1):
            forward = scale[n + 1] / scale[n]
            state[2 * n, 0] = forward * (1.0 + h[n] * a[n])
            data[2 * n, 0] = scale[n + 1] * h[n] * b[n]
            if n == last:
                break
            half = 0.5 * h[n]
            state[2 * n + 1, 0] = half * a[n + 1]
            state[2 * n + 1, 1] = forward * (1.0 + half * a[n])
            data[2 * n + 1, 0] = scale[n + 1] * half * b[n + 1]
            data[2 * n + 1, 1] = scale[n + 1] * half * b[n]
        return StepWeights(state.to(self._place.device), data.to(self._place.device))

    def _rates(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Return sigma'/sigma and alpha lambda' by automatic differentiation."""
        with torch.enable_grad():
            t = times.clone().requires_grad_()
            log_sigma = torch.log(self.schedule.sigma(t)).sum()
            (a,) = torch.autograd.grad(log_sigma, t)
            (slope,) = torch.autograd.grad(self.schedule.lambda_(t).sum(), t)
        return a, self.schedule.alpha(times) * slope

    def describe(self) -> dict[str, Any]:
        """Return plain values that say which solver this is, for manifests and tables."""
        return {**super().describe(), "variable": self.variable}
