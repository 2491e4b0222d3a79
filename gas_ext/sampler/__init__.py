"""Sampling: evaluate the network, update, repeat."""

from gas_ext.sampler.sampler import GASSampler, Trajectory
from gas_ext.sampler.solve import PartialSolve

__all__ = ["GASSampler", "PartialSolve", "Trajectory"]
