"""Any model of diffusers as a teacher: pipelines, networks with a scheduler, folders, names on the hub."""

from gas_ext.teachers.diffusers.networks import NETWORKS, NetworkInterface
from gas_ext.teachers.diffusers.schedules import shift_timesteps
from gas_ext.teachers.diffusers.teacher import DiffusersTeacher, from_diffusers

__all__ = ["NETWORKS", "DiffusersTeacher", "NetworkInterface", "from_diffusers", "shift_timesteps"]
