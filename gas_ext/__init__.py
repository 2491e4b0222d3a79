"""Few-step sampling of diffusion and flow models with learned solvers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gas_ext._utils.lazy import lazy_exports

if TYPE_CHECKING:
    from gas_ext.denoisers import Denoiser
    from gas_ext.sampler import GASSampler
    from gas_ext.schedules import NoiseSchedule
    from gas_ext.solvers.generalized import GeneralizedSolver

__all__ = ["Denoiser", "GASSampler", "GeneralizedSolver", "NoiseSchedule"]
__version__ = "0.1.0"

__getattr__ = lazy_exports(
    __name__,
    {
        "Denoiser": "gas_ext.denoisers",
        "GASSampler": "gas_ext.sampler",
        "GeneralizedSolver": "gas_ext.solvers.generalized",
        "NoiseSchedule": "gas_ext.schedules",
    },
)
