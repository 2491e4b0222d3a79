"""CompVis checkpoints as teachers: latent diffusion (LSUN, ImageNet) and Stable Diffusion 1.x."""

from gas_ext.teachers.ldm.checkpoint import identify_checkpoint
from gas_ext.teachers.ldm.load import load_checkpoint, load_stable_diffusion_pipeline
from gas_ext.teachers.ldm.teacher import LatentTeacher

__all__ = ["LatentTeacher", "identify_checkpoint", "load_checkpoint", "load_stable_diffusion_pipeline"]
