"""Learned and training-free solvers: their coefficients, timesteps, names and files.

All are linear in the states and predictions they store, so each step is one `gas_ext.ops.fused_update`, and
all run in `GASSampler`. `gas_ext.solvers.registry` builds them by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gas_ext._utils.lazy import lazy_exports

if TYPE_CHECKING:
    from gas_ext.solvers.coefficients import Solver, SolverCoefficients
    from gas_ext.solvers.deis import DEISSolver
    from gas_ext.solvers.dpm import DPMSolver
    from gas_ext.solvers.generalized import GeneralizedSolver
    from gas_ext.solvers.heun import HeunSolver
    from gas_ext.solvers.ipndm import IPNDMSolver
    from gas_ext.solvers.multistep import MultistepSolver
    from gas_ext.solvers.timesteps import GITS_SIGMAS, gits_timesteps
    from gas_ext.solvers.unipc import UniPCSolver

__all__ = [
    "GITS_SIGMAS",
    "DEISSolver",
    "DPMSolver",
    "GeneralizedSolver",
    "HeunSolver",
    "IPNDMSolver",
    "MultistepSolver",
    "Solver",
    "SolverCoefficients",
    "UniPCSolver",
    "gits_timesteps",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "GITS_SIGMAS": "gas_ext.solvers.timesteps",
        "DEISSolver": "gas_ext.solvers.deis",
        "DPMSolver": "gas_ext.solvers.dpm",
        "GeneralizedSolver": "gas_ext.solvers.generalized",
        "HeunSolver": "gas_ext.solvers.heun",
        "IPNDMSolver": "gas_ext.solvers.ipndm",
        "MultistepSolver": "gas_ext.solvers.multistep",
        "Solver": "gas_ext.solvers.coefficients",
        "SolverCoefficients": "gas_ext.solvers.coefficients",
        "UniPCSolver": "gas_ext.solvers.unipc",
        "gits_timesteps": "gas_ext.solvers.timesteps",
    },
)
