"""Safetensors files with one JSON record and a SHA-256 over record and tensors.

Solvers, discriminators, checkpoints and shards of teacher samples are such files.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from gas_ext._utils.files import write_file


def checksum(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 (hex) of a record without its own "sha256", and of all tensors by name."""
    described = json.loads(json.dumps({name: value for name, value in record.items() if name != "sha256"}))
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_sealed(path: Path, key: str, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write tensors and, under `key`, the record with its SHA-256; atomic."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps({**record, "sha256": checksum(record, tensors)})
    write_file(path, serialize(tensors, {key: text}))


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return metadata and tensors of a file, unchecked; the errors are those of safetensors."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        # Copies, as aligned as torch's own memory is: other alignment may give other roundings.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    return metadata, tensors
