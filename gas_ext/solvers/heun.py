"""Heun's method, and with it EDM's deterministic sampler (Karras et al. 2022, algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from gas_ext._utils.checks import whole_number
from gas_ext.schedules import NoiseSchedule
from gas_ext.solvers.coefficients import StepWeights
from gas_ext.solvers.multistep import MultistepSolver, check_choice
from gas_ext.solvers.timesteps import Timesteps


class HeunSolver(MultistepSolver):
    """Heun's method of second order: up to two network evaluations per step.

    Each stage is one linear combination of the two newest states and data predictions, so Heun's method runs
    in `GASSampler` as a multistep solver with one step per evaluation: stages 0, 2, 4, ... are Euler steps to
    the next time, and stages 1, 3, 5, ... replace the result by the step along the mean of both slopes.
    Therefore `timesteps` contains the times between first and last twice.

    With X = x / scale and u the variable of integration, dX/du = a X + b D:
    u = sigma / alpha, scale = alpha: a = 1/u, b = -1/u (what EDM uses);
    u = t, scale = 1: a = sigma'/sigma, b = alpha lambda' (the ODE in the schedule's own time).

    Parameters
    ----------
    schedule : NoiseSchedule
        Schedule of the states.
    steps : int
        Number of network evaluations: odd for `last` "zero" (at least 3) and "euler", even for "heun". EDM's
        18 timesteps are 35 evaluations.
    t_eps : float
        The last time at which the network is evaluated. Default: 0, where EDM's schedule has sigma_min.
    timesteps : str or sequence of float
        A spacing or a list, as for `MultistepSolver`, for the distinct times. Default: "uniform".
    variable : str
        Variable of integration: "sigma" (default) or "time".
    last : str
        The last of N steps. "zero" (default): an Euler step from t_eps to sigma = 0, where the network cannot
        be evaluated, as in EDM; N distinct times, 2 N - 1 evaluations. "euler", "heun": a step to t_eps,
        where all other solvers end; N + 1 distinct times, 2 N - 1 or 2 N evaluations.

    Examples
    --------
    >>> HeunSolver(NoiseSchedule.edm(0.002, 80.0), steps=35).timesteps().unique().numel()
    18
    """

    highest_order = 2
    options = ("variable", "last")

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
        check_choice("variable", variable, ("sigma", "time"))
        check_choice("last", last, ("zero", "euler", "heun"))
        least, odd = {"zero": (3, True), "euler": (1, True), "heun": (2, False)}[last]
        if whole_number("steps", steps) < least or steps % 2 != odd:
            raise ValueError(
                f"steps is {steps}, but Heun's method with last={last!r} takes an {'odd' if odd else 'even'} "
                f"number of network evaluations, at least {least}."
            )
        # Each interval takes two evaluations; the last one of "zero" and "euler" takes one.
        intervals = steps // 2 if last == "zero" else (steps + 1) // 2
        super().__init__(schedule, intervals, 2, t_eps, timesteps)
        self.variable, self.last = variable, last
        # Each time has two states, predicted and corrected; the first and Euler's last have one.
        repeats = torch.full((len(self._times),), 2, device="cpu")
        repeats[0] = 1
        if last == "euler":
            repeats[-1] = 1
        self._distinct_times = self._times
        self._times = self._times.repeat_interleave(repeats)
        if last == "zero":  # sigma = 0 has no time; 0 is written for it
            self._times = torch.cat([self._times, self._times.new_zeros(1)])
        self.steps = steps

    def _compute_weights(self) -> StepWeights:
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
        """Return u and scale at all times including the end, and a and b where the network is evaluated."""
        times = self._distinct_times
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
