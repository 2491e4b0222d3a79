"""The discriminator that a config names."""

from __future__ import annotations

from pathlib import Path

from gas_ext.configs import Config
from gas_ext.configs.training import Adversarial
from gas_ext.denoisers import Denoiser
from gas_ext.training.adversarial import Adversary
from gas_ext.training.discriminators import (
    Discriminator,
    TeacherView,
    build_discriminator,
    load_discriminator,
    load_r3gan_snapshot,
)

_SNAPSHOTS = ("r3gan-cifar10", "r3gan-ffhq64")


def make_adversary(config: Config, denoiser: Denoiser) -> Adversary:
    """Build or load the discriminator of a config, on the network's device.

    Raises
    ------
    ValueError
        If the config has no adversarial section, a file is missing or damaged, or the discriminator is for
        samples of another shape.
    """
    section = config.adversarial
    if section is None:
        raise ValueError(
            f"The config {config.name} has no adversarial section, which GAS needs: add one, e.g. with --set "
            "adversarial.discriminator=convolution --set adversarial.rate=1e-5 --set adversarial.weight=1 "
            "--set adversarial.gamma=0.2, or use --loss gs."
        )
    levels = section.noise_levels
    view = TeacherView(denoiser, levels, recompute=config.training.recompute) if levels else None
    shape = denoiser.sample_shape if view is None else view.sample_shape
    discriminator = _discriminator(section, shape, config.training.seed)
    if discriminator.sample_shape != shape:
        raise ValueError(
            f"The discriminator {section.discriminator} is for samples of shape "
            f"{discriminator.sample_shape}, but {denoiser.name} with adversarial.noise_levels={list(levels)} "
            f"shows it {shape}; name another, or set the noise levels that it was made for."
        )
    return Adversary(
        discriminator.to(denoiser.device),
        rate=section.rate,
        betas=section.betas,
        weight=section.weight,
        gamma=section.gamma,
        loss=section.loss,
        view=view,
    )


def takes_labels(discriminator: Discriminator, denoiser: Denoiser) -> bool:
    """Whether a discriminator is told the labels of its samples: if both count the same classes."""
    return bool(discriminator.num_classes) and discriminator.num_classes == denoiser.num_classes


def _discriminator(section: Adversarial, shape: tuple[int, ...], seed: int) -> Discriminator:
    name = section.discriminator
    if name in _SNAPSHOTS:
        return _snapshot(name)
    if name.endswith(".safetensors"):
        return load_discriminator(name)
    registered = "r3gan" if name == "r3gan-random" else name
    return build_discriminator(registered, shape, seed=seed, **section.settings)


def _snapshot(name: str) -> Discriminator:
    """Load a published discriminator from where weights are kept, as published or converted."""
    from gas_ext.teachers.sources import weights_folder

    folder: Path = weights_folder()
    converted, published = folder / f"{name}.safetensors", folder / f"{name}.pkl"
    if converted.is_file():
        return load_discriminator(converted)
    if published.is_file():
        return load_r3gan_snapshot(published)
    raise ValueError(
        f"There is no discriminator {published}: download R3GAN's snapshot from "
        "https://github.com/brownvc/R3GAN, or name another with --set adversarial.discriminator=..."
    )
