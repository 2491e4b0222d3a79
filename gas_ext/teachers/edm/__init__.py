"""The networks of EDM (Karras et al. 2022): DDPM++, NCSN++ and ADM with VP, VE and EDM preconditioning."""

from gas_ext.teachers.edm.networks import DhariwalUNet, SongUNet
from gas_ext.teachers.edm.preconditioning import PreconditionedNetwork
from gas_ext.teachers.edm.teacher import EDMTeacher, load_edm_snapshot

__all__ = ["DhariwalUNet", "EDMTeacher", "PreconditionedNetwork", "SongUNet", "load_edm_snapshot"]
