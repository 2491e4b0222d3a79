"""Discriminator files: safetensors with one JSON record, as for solvers."""

from __future__ import annotations

import os
from pathlib import Path

from gas_ext._utils.building import check_weights, described_by
from gas_ext._utils.records import RECORD, SHAPE, TEXT, Fields, reason_of
from gas_ext._utils.sealed_files import read_sealed, write_sealed
from gas_ext.training.discriminators.base import Discriminator, build_discriminator

FORMAT_VERSION = 1
_KEY = "gas_ext_discriminator"
_FIELDS: Fields = {"name": TEXT, "sample_shape": SHAPE, "settings": RECORD}


def save_discriminator(discriminator: Discriminator, path: str | os.PathLike[str]) -> None:
    """Write a discriminator of a registered class to a .safetensors file, atomically.

    Raises
    ------
    ValueError
        If its class is not registered.

    Examples
    --------
    >>> import tempfile, torch
    >>> discriminator = build_discriminator("convolution", (1, 32), width=4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_discriminator(discriminator, f"{folder}/discriminator.safetensors")
    ...     again = load_discriminator(f"{folder}/discriminator.safetensors")
    >>> signal = torch.randn(2, 1, 32)
    >>> torch.equal(again(signal), discriminator(signal))
    True
    """
    if not discriminator.name:
        raise ValueError(
            f"{type(discriminator).__name__} has no name; decorate it with register_discriminator, so that "
            "its files can be loaded."
        )
    record = {
        "format_version": FORMAT_VERSION,
        "name": discriminator.name,
        "sample_shape": list(discriminator.sample_shape),
        "settings": discriminator.settings,
    }
    write_sealed(Path(path), _KEY, record, discriminator.state_dict())


def load_discriminator(path: str | os.PathLike[str]) -> Discriminator:
    """Load a file of `save_discriminator`, on the CPU and in the dtype it was saved with.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If it is damaged, is not a discriminator, or needs a class that is not registered.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no discriminator file {path}.")
    record, tensors = read_sealed(Path(path), _KEY, "discriminator", _FIELDS, version=FORMAT_VERSION)
    arguments = record["name"], record["sample_shape"]
    try:
        with described_by(tensors):
            check_weights(build_discriminator(*arguments, **record["settings"]), tensors)
        discriminator = build_discriminator(*arguments, **record["settings"])
        discriminator.load_state_dict(tensors, assign=True)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = reason_of(error)
        raise ValueError(f"{path} cannot be rebuilt: {reason}.") from error
    return discriminator
