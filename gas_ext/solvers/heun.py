"""Heun's method, and with it EDM's deterministic sampler (Karras et al. 2022, algorithm 1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gas_ext._utils.checks import whole_number
from gas_ext.schedules import NoiseSchedule
from gas_ext.solvers.coefficients import StepWeights
from gas_ext.solvers.multistep import MultistepSolver, Timesteps


class HeunSolver(MultistepSolver):
    """Heun's method of second order: up to two network evaluations per step.

    Each stage is one linear combination of the two newest states and data predictions, so that Heun runs in
    `GASSampler` like a multistep solver of as many steps as there are evaluations: stages 0, 2, 4, ... go to
    the next time by Euler, and stages 1, 3, 5, ... replace that state by what the mean of both slopes gives.
    So `timesteps` has the times between first and last twice.

    With X = x / scale and u the variable of integration, dX/du = a X + b D:
    u = sigma / alpha, scale = alpha: a = 1/u, b = -1/u (what EDM uses);
    u = t, scale = 1: a = sigma'/sigma, b = alpha lambda' (the ODE in the schedule's own time).

    Parameters
    ----------
    schedule : NoiseSchedule
        Schedule of the states.
    steps : int
        Number of network evaluations, as for every solver: odd for `last` "zero" (at least 3) and "euler",
        even for "heun". EDM's 18 times are 35 evaluations.
    t_eps : float
        The last time at which the network may be asked.
    timesteps : str or sequence of float
        As for `MultistepSolver`: a spacing, or the times themselves, decreasing.
    variable : str
        "sigma" or "time".
    last : str
        The last of N steps. "zero": by Euler from t_eps to sigma = 0, where the network cannot be evaluated,
        as EDM does; there are N times and 2 N - 1 evaluations. "euler", "heun": to t_eps, where the other
        solvers end too; there are N + 1 times and 2 N - 1 or 2 N evaluations.

    Examples
    --------
    >>> HeunSolver(NoiseSchedule.edm(0.002, 80.0), steps=35).timesteps().unique().numel()
    18
    """

    highest_order = 2

    def __init__(
        self,
        schedule: NoiseSchedule,
        steps: int,
        t_eps: float = 0.0,
        timesteps: Timesteps = "uniform",
        *,
        variable: str = "sigma",
        last: str = "zero",
    ) -> None:
        if variable not in ("sigma", "time"):
            raise ValueError(f"variable is {variable!r}, but must be 'sigma' or 'time'.")
        if last not in ("zero", "euler", "heun"):
            raise ValueError(f"last is {last!r}, but must be 'zero', 'euler' or 'heun'.")
        least, odd = {"zero": (3, True), "euler": (1, True), "heun": (2, False)}[last]
        if whole_number("steps", steps) < least or steps % 2 != odd:
            raise ValueError(
                f"steps is {steps}, but Heun's method with last={last!r} makes an {'odd' if odd else 'even'} "
                f"number of network evaluations, at least {least}."
            )
        # Two evaluations for each interval between the times; the last one of "zero" and "euler" has one.
        intervals = steps // 2 if last == "zero" else (steps + 1) // 2
        super().__init__(schedule, intervals, 2, t_eps, timesteps)
        self.variable, self.last = variable, last
        self._places = self._times
        # Two states stand at each time, predicted and corrected, but one at the first and at Euler's last.
        twice = self._places[1:] if last == "zero" else self._places[1:-1]
        self._times = torch.cat([self._places[:1], twice.repeat_interleave(2), self._end()])
        self.steps = steps

    def _end(self) -> Tensor:
        """Return the times of the last states: 0 where sigma = 0, which has no time."""
        if self.last == "zero":
            return torch.zeros(1, dtype=torch.float64, device="cpu")
        return self._places[-1:].repeat(2 if self.last == "heun" else 1)

    def _compute_weights(self) -> StepWeights:
        """Return the weights of all stages."""
        u, scale, a, b = self._ode()
        h = u.diff()
        state = torch.zeros(self.steps, 2, dtype=torch.float64)
        data = torch.zeros(self.steps, 2, dtype=torch.float64)
        for n in range(len(h)):
            forward = scale[n + 1] / scale[n]
            state[2 * n, 0] = forward * (1.0 + h[n] * a[n])
            data[2 * n, 0] = scale[n + 1] * h[n] * b[n]
            if 2 * n + 1 == self.steps:  # Euler's last step
                break
            half = 0.5 * h[n]
            state[2 * n + 1, 0] = half * a[n + 1]
            state[2 * n + 1, 1] = forward * (1.0 + half * a[n])
            data[2 * n + 1, 0] = scale[n + 1] * half * b[n + 1]
            data[2 * n + 1, 1] = scale[n + 1] * half * b[n]
        return StepWeights(state, data)

    def _ode(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return u and scale at all times, the end included, and a and b where the network is asked."""
        times = self._places
        alpha = self.schedule.alpha(times)
        if self.variable == "sigma":
            u, scale = torch.exp(-self.schedule.lambda_(times)), alpha
            a, b = 1.0 / u, -1.0 / u
        else:
            u, scale = times, torch.ones_like(times)
            a, b = self._rates(times)
        if self.last == "zero":
            u, scale = torch.cat([u, u.new_zeros(1)]), torch.cat([scale, scale.new_ones(1)])
        return u, scale, a, b

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
        return {**super().describe(), "variable": self.variable, "last": self.last}
