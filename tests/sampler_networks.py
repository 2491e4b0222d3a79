"""Networks, noise and changed solvers for the tests of sampling."""

import torch
from test_schedules import SCHEDULES
from toy_networks import GaussianMixture

from gas_ext import GeneralizedSolver, NoiseSchedule

VP = SCHEDULES["vp_linear"]


def mixture(schedule: NoiseSchedule, dtype=torch.float64):
    """An exact "sample" network: two Gaussian components on two channels."""
    means = torch.tensor([[-0.6, 0.3], [0.8, -0.2]], dtype=dtype)
    std, log_weight = torch.tensor([0.2, 0.4], dtype=dtype), torch.tensor([-0.9, -0.5], dtype=dtype)
    return GaussianMixture(means, std, log_weight).as_denoiser(schedule)


def noise_of(*shape: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def labelled(x, t, condition):
    """A network that depends on its (B, 1) condition."""
    return torch.tanh(x * (1.0 + condition)) * (1.0 - t) + 0.2 * condition


def randomize(solver: GeneralizedSolver, seed: int, scale: float) -> GeneralizedSolver:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in solver.parameters():
            parameter += scale * torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    return solver
