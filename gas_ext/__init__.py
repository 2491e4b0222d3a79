"""Few-step sampling of diffusion and flow models with learned solvers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gas_ext.denoisers import Denoiser
    from gas_ext.sampler import GASSampler
    from gas_ext.schedules import NoiseSchedule
    from gas_ext.solver import GeneralizedSolver

__all__ = ["Denoiser", "GASSampler", "GeneralizedSolver", "NoiseSchedule"]
__version__ = "0.1.0"

# Imported on first use, so that `gas-ext --help` does not wait for torch.
_HOMES = {
    "Denoiser": "gas_ext.denoisers",
    "GASSampler": "gas_ext.sampler",
    "GeneralizedSolver": "gas_ext.solver",
    "NoiseSchedule": "gas_ext.schedules",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gas_ext' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
