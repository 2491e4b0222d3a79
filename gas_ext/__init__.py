"""Few-step sampling of diffusion and flow models with learned solvers."""

from gas_ext.sampler import GASSampler
from gas_ext.schedules import NoiseSchedule
from gas_ext.solver import GeneralizedSolver

__all__ = ["GASSampler", "GeneralizedSolver", "NoiseSchedule"]
__version__ = "0.1.0"
