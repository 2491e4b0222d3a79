"""Training-free solvers as tables for the fused update: what learned solvers are compared with.

All are linear in what they keep, so that one network evaluation goes with one `gas_ext.ops.fused_update`, and
they run in `GASSampler` like a learned solver. `gas_ext.catalog` builds them by name.
"""

from __future__ import annotations

from gas_ext.classical.base import MultistepSolver
from gas_ext.classical.deis import DEISSolver
from gas_ext.classical.dpm import DPMSolver
from gas_ext.classical.gits import GITS_SIGMAS, gits_timesteps
from gas_ext.classical.heun import HeunSolver
from gas_ext.classical.ipndm import IPNDMSolver
from gas_ext.classical.unipc import UniPCSolver

__all__ = [
    "GITS_SIGMAS",
    "DEISSolver",
    "DPMSolver",
    "HeunSolver",
    "IPNDMSolver",
    "MultistepSolver",
    "UniPCSolver",
    "gits_timesteps",
]
