"""Discriminator files: safetensors with one JSON record, as for solvers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from gas_ext._utils.sealed_files import checksum, read_safetensors, write_sealed
from gas_ext.training.discriminators.base import Discriminator, build_discriminator

FORMAT_VERSION = 1
_KEY = "gas_ext_discriminator"
_FIELDS = {"name": str, "sample_shape": list, "settings": dict, "sha256": str}


def save_discriminator(discriminator: Discriminator, path: str | os.PathLike[str]) -> None:
    """Write a discriminator; `path` appears, or changes, only when the file is complete.

    Parameters
    ----------
    discriminator : Discriminator
        Of a registered class.
    path : path
        A .safetensors file.

    Raises
    ------
    ValueError
        If its class has no name, so that no file could be read back.

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
            f"{type(discriminator).__name__} has no name: decorate it with register_discriminator, so that "
            "files can be read back."
        )
    record = {
        "format_version": FORMAT_VERSION,
        "name": discriminator.name,
        "sample_shape": list(discriminator.sample_shape),
        "settings": discriminator.settings,
    }
    write_sealed(Path(path), _KEY, record, discriminator.state_dict())


def load_discriminator(path: str | os.PathLike[str]) -> Discriminator:
    """Read what `save_discriminator` wrote, on the CPU and in the dtype it had.

    Parameters
    ----------
    path : path
        The file.

    Raises
    ------
    FileNotFoundError
        If there is no file.
    ValueError
        If it is damaged, holds something else, or needs a class that is not registered.
    """
    record, tensors = _read(Path(path))
    try:
        discriminator = build_discriminator(record["name"], record["sample_shape"], **record["settings"])
        discriminator.load_state_dict(tensors, assign=True)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path} cannot be rebuilt: {reason}") from error
    return discriminator


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no discriminator file {path}.")
    try:
        metadata, tensors = read_safetensors(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is not a safetensors file, or is damaged: {error}.") from error
    if _KEY not in metadata:
        raise ValueError(f"{path} is a safetensors file but holds no discriminator saved by gas_ext.")
    try:
        record = json.loads(metadata[_KEY])
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged: its description is not JSON ({error}).") from error
    version = record.get("format_version") if isinstance(record, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has discriminator format {version!r}, but this gas_ext reads format {FORMAT_VERSION}; "
            "use the release that wrote it."
        )
    for name, kind in _FIELDS.items():
        if not isinstance(record.get(name), kind):
            raise ValueError(f"{path} is damaged: its field {name!r} is missing or of the wrong type.")
    if record["sha256"] != checksum(record, tensors):
        raise ValueError(f"{path} is damaged: its content does not match its SHA-256; get a fresh copy.")
    return record, tensors
