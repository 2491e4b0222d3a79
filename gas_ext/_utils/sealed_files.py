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
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from gas_ext._utils.files import write_file
from gas_ext._utils.records import TEXT, Fields, check_record, parse_json, reason_of, shown


def checksum(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 (hex) of a record without its "sha256", and of all tensors by name."""
    described = json.loads(json.dumps({name: value for name, value in record.items() if name != "sha256"}))
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]  # one at a time: some mappings read them from a file
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_sealed(path: Path, key: str, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write tensors and, under `key`, the record with its SHA-256; atomic."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_record(path, key, {**record, "sha256": checksum(record, tensors)}, tensors)


def write_record(path: Path, key: str, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write contiguous CPU tensors and a record that already has its SHA-256; atomic."""
    write_file(path, serialize(dict(tensors), {key: json.dumps(record)}))


def read_safetensors(
    path: str | os.PathLike[str], *, copy: bool = True
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return metadata and tensors of a file, unchecked; raises the errors of safetensors.

    Without `copy` the tensors are views of the mapped file, which takes no time.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if copy:  # aligned like torch's own memory: another alignment may give other roundings
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    return metadata, tensors


def read_sealed(
    path: Path,
    key: str,
    what: str,
    fields: Fields,
    absent: Mapping[str, Any] | None = None,
    version: int = 1,
    version_field: str = "format_version",
    *,
    whole: bool = True,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return record and tensors of a file by `write_sealed`; ValueError unless both are right.

    `what` names the contents in messages, and `fields` is the table of the record's fields; "sha256" need not
    be in it. `absent` holds values of fields that older files lack. With `whole` False the checksum is not
    checked, and the tensors are views of the mapped file.
    """
    try:
        metadata, tensors = read_safetensors(path, copy=whole)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a safetensors file, or is damaged: {reason_of(error)}.") from error
    if key not in metadata:
        raise ValueError(f"{path} is a safetensors file, but does not hold a {what} saved by gas_ext.")
    record = parse_json(metadata[key], path)
    found = record.get(version_field) if isinstance(record, dict) else version
    if found != version or type(found) is not int:
        raise ValueError(
            f"{path} has {what} format {shown(found)}, but this gas_ext reads format {version}; "
            "use the release that wrote it."
        )
    complete = {**(absent or {}), **record} if isinstance(record, dict) else record
    check_record(complete, {**fields, "sha256": TEXT}, path)
    if whole and record["sha256"] != checksum(record, tensors):
        raise ValueError(f"{path} is damaged: its content does not match its SHA-256; get a fresh copy.")
    return complete, tensors
