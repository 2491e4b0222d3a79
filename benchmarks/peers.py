"""Peers of the benchmarks: the update as the public code of GAS computes it, and the steps of diffusers.

The public code (arXiv 2510.17699) computes each step from 0-d float32 tensors: it recomputes schedule, theory
and corrections from the times, and applies one elementwise operation after another. It is reimplemented here
from the equations; tests/benchmarks/test_peers.py compares it with the golden data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LogAlpha = Callable[[Tensor], Tensor]
Network = Callable[[Tensor, Tensor], Tensor]  # (x, time) -> noise prediction


def linear_log_alpha(beta_0: float = 0.1, beta_1: float = 20.0) -> LogAlpha:
    """Log alpha(t) of the linear schedule."""

    def log_alpha(t: Tensor) -> Tensor:
        return -0.25 * t**2 * (beta_1 - beta_0) - 0.5 * t * beta_0

    return log_alpha


def discrete_log_alpha(times: Tensor, knots: Tensor) -> LogAlpha:
    """Log alpha(t) of a table, linear between its knots and beyond them."""

    def log_alpha(t: Tensor) -> Tensor:
        right = torch.searchsorted(times, t.reshape(1)).clamp(1, len(times) - 1)
        left = right - 1
        slope = (knots[right] - knots[left]) / (times[right] - times[left])
        return (knots[left] + slope * (t - times[left])).reshape(t.shape)

    return log_alpha


@dataclass
class Parameters:
    """Times t_0 > ... > t_N, offsets of the network's times, and corrections c and a: (order, N)."""

    timesteps: Tensor
    offsets: Tensor
    c: Tensor
    a: Tensor

    @classmethod
    def untrained(cls, steps: int, order: int, t_eps: float = 1e-3) -> Parameters:
        """Uniform times, no corrections."""
        table = torch.zeros(order, steps)
        return cls(torch.linspace(1.0, t_eps, steps + 1), torch.zeros(steps), table, table.clone())

    def requires_grad_(self) -> Parameters:
        """Require gradients of all parameters."""
        for tensor in (self.timesteps, self.offsets, self.c, self.a):
            tensor.requires_grad_()
        return self


def stick_breaking_times(logits: Tensor, t_eps: float) -> Tensor:
    """Times from the logits of stick breaking, as published: the first sets the last time before t_eps."""
    broken = torch.sigmoid(logits) * (1.0 - 2e-5) + 1e-5
    inner = (1.0 - torch.cumprod(broken, 0)) * (1.0 - t_eps) + t_eps
    ends = torch.tensor([t_eps, 1.0], dtype=inner.dtype)
    return torch.cat([ends[:1], inner, ends[1:]]).flip(0)


def unfused_update(
    log_alpha: LogAlpha,
    times: Sequence[Tensor],
    states: Sequence[Tensor],
    data: Sequence[Tensor],
    output: Tensor,
    c: Sequence[Tensor],
    a: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """Return D_n from the noise prediction `output`, and x_{n+1}.

    Everything starts with the newest: `times` are t_{n+1}, t_n, t_{n-1}, t_{n-2}, as far as they exist;
    `states` x_n, x_{n-1}, ...; `data` D_{n-1}, D_{n-2}, ...; `c` and `a` the corrections of the
    1 + len(data) data predictions and of the states.
    """
    log_alphas = [log_alpha(t) for t in times]
    sigmas = [torch.sqrt(1.0 - torch.exp(2.0 * value)) for value in log_alphas]
    lambdas = [value - torch.log(sigma) for value, sigma in zip(log_alphas, sigmas, strict=True)]
    alpha_next, alpha = torch.exp(log_alphas[0]), torch.exp(log_alphas[1])
    x = states[0]
    newest = (x - sigmas[1] * output) / alpha
    d = [newest, *data]
    h = lambdas[0] - lambdas[1]
    phi_1 = torch.expm1(-h)
    result = (sigmas[0] / sigmas[1] + a[0]) * x - (alpha_next * phi_1 + c[0]) * newest
    if len(d) == 2:
        difference = (d[0] - d[1]) / ((lambdas[1] - lambdas[2]) / h)
        result = result - (0.5 * alpha_next * phi_1 + c[1]) * difference
    elif len(d) > 2:
        r0, r1 = (lambdas[1] - lambdas[2]) / h, (lambdas[2] - lambdas[3]) / h
        phi_2 = phi_1 / h + 1.0
        phi_3 = phi_2 / h - 0.5
        d0, d1 = (d[0] - d[1]) / r0, (d[1] - d[2]) / r1
        first = d0 + r0 / (r0 + r1) * (d0 - d1)
        second = (d0 - d1) / (r0 + r1)
        result = result + (alpha_next * phi_2 + c[1]) * first - (alpha_next * phi_3 + c[2]) * second
    for i in range(3, len(d)):
        result = result + c[i] * d[i]
    for i in range(1, len(states)):
        result = result + a[i] * states[i]
    return newest, result


def unfused_solve(
    log_alpha: LogAlpha, parameters: Parameters, network: Network, noise: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Return all states x_0 to x_N and data predictions D_0 to D_{N-1} of a solve from noise."""
    order, steps = parameters.c.shape
    t, c, a = parameters.timesteps, parameters.c, parameters.a
    states: list[Tensor] = [noise]
    data: list[Tensor] = []
    for n in range(steps):
        k = min(n + 1, order)
        output = network(states[-1], t[n] + parameters.offsets[n])
        times = [t[n + 1 - i] for i in range(min(k, 3) + 1)]
        fresh, x = unfused_update(
            log_alpha,
            times,
            states[: -k - 1 : -1],
            data[:-k:-1] if k > 1 else [],
            output,
            [c[i, n] for i in range(k)],
            [a[i, n] for i in range(k)],
        )
        data.append(fresh)
        states.append(x)
    return states, data


def noise_prediction(teacher: Any, labels: Tensor) -> tuple[LogAlpha, Network]:
    """Wrap a teacher that predicts the sample as the public code does: log alpha and noise prediction."""
    schedule = teacher.schedule

    def network(x: Tensor, t: Tensor) -> Tensor:
        output = teacher(x, t.double(), labels)
        return ((x - schedule.alpha(t) * output) / schedule.sigma(t)).to(x.dtype)

    return linear_log_alpha(schedule.beta_0, schedule.beta_1), network


def diffusers_scheduler(name: str) -> Any:
    """DPM-Solver++ of order 2 ("dpmsolver++") or UniPC of order 3 ("unipc"); needs diffusers."""
    import diffusers

    if name == "unipc":
        return diffusers.UniPCMultistepScheduler(solver_order=3, solver_type="bh2")
    return diffusers.DPMSolverMultistepScheduler(solver_order=2, algorithm_type="dpmsolver++")


def diffusers_solve(scheduler: Any, output: Tensor, noise: Tensor) -> Tensor:
    """Run all steps of a scheduler whose timesteps are set, with a network that costs nothing."""
    x = noise
    for t in scheduler.timesteps:
        x = scheduler.step(output, t, x).prev_sample
    return x


def restart(scheduler: Any) -> None:
    """Reset a scheduler for another solve at the same times, without the cost of setting them again."""
    order = scheduler.config.solver_order
    scheduler.model_outputs = [None] * order
    scheduler.lower_order_nums = 0
    scheduler._step_index = None
    if hasattr(scheduler, "timestep_list"):
        scheduler.timestep_list = [None] * order
        scheduler.last_sample = None
