"""Discriminators, which separate a student's samples from its teacher's, for the adversarial term of GAS."""

from gas_ext.training.discriminators.base import (
    Discriminator,
    build_discriminator,
    discriminator_names,
    register_discriminator,
)
from gas_ext.training.discriminators.convolution import ConvolutionDiscriminator
from gas_ext.training.discriminators.files import load_discriminator, save_discriminator
from gas_ext.training.discriminators.r3gan import R3GANConfig, R3GANDiscriminator
from gas_ext.training.discriminators.snapshots import load_r3gan_snapshot
from gas_ext.training.discriminators.view import TeacherView

__all__ = [
    "ConvolutionDiscriminator",
    "Discriminator",
    "R3GANConfig",
    "R3GANDiscriminator",
    "TeacherView",
    "build_discriminator",
    "discriminator_names",
    "load_discriminator",
    "load_r3gan_snapshot",
    "register_discriminator",
    "save_discriminator",
]
