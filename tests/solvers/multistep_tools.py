"""Stable Diffusion's schedule, a network, and solves with our and diffusers' solvers."""

import torch

from gas_ext import GASSampler, NoiseSchedule

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
SCHEDULE = NoiseSchedule.vp_discrete(torch.cumprod(1.0 - BETAS, 0))


def network(x, t, condition=None):
    """Some smooth "epsilon" network."""
    return torch.tanh(x + t) + 0.3 * x


def noise(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def solve(solver, x, predictor=network, prediction_type="epsilon"):
    return GASSampler(solver, predictor, prediction_type)(x)


def configured(scheduler, steps):
    """Set the steps of a diffusers scheduler, in float64 where it stores float32; return the timesteps."""
    scheduler.set_timesteps(steps)
    integers = [*scheduler.timesteps.tolist(), 0]  # tau; t = (tau + 1) / 1000
    times = torch.tensor([(tau + 1) / 1000 for tau in integers], dtype=torch.float64)
    scheduler.sigmas = torch.exp(-SCHEDULE.lambda_(times))
    return times


def scheduled(scheduler, times, x):
    """Solve with a scheduler of diffusers."""
    for n, tau in enumerate(scheduler.timesteps):
        x = scheduler.step(network(x, times[n]), tau, x).prev_sample
    return x


def errors(cls, counts, exact_steps, **options):
    """Return the largest errors of a solver with as many steps, on a network that is smooth in x and t."""
    x, schedule = noise(4, 6, seed=1), NoiseSchedule.vp_linear()

    def final(steps):
        return solve(cls(schedule, steps, timesteps="logsnr", **options), x)

    exact = final(exact_steps)
    return [(final(n) - exact).abs().max().item() for n in counts]
