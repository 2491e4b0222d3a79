"""Solver files: safetensors with one JSON record, and the checkpoints published with the GS/GAS paper."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from torch import Tensor

from gas_ext.files import write_file
from gas_ext.safe_pickle import read_torch_archive
from gas_ext.sealed_file import checksum, read_safetensors, write_sealed

FORMAT_VERSION = 1
SUFFIX = ".safetensors"
_KEY = "gas_ext_solver"

Record: TypeAlias = dict[str, Any]

_FIELDS: dict[str, type | tuple[type, ...]] = {
    "schedule": dict,
    "steps": int,
    "order": int,
    "t_eps": float,
    "theory_guidance": bool,
    "theory_order": int,
    "compat": (str, type(None)),
    "kind": str,
    "prediction_type": (str, type(None)),
    "guidance_scale": (int, float, type(None)),
    "teacher": dict,
    "training": dict,
    "sha256": str,
}
# What a file means that was written before there was such a field.
_ABSENT = {"kind": "gs"}


def write_solver_file(path: Path, record: Record, tensors: Mapping[str, Tensor]) -> None:
    """Write a solver; `path` appears, or changes, only when the file is complete."""
    record = {"format_version": FORMAT_VERSION, **record}
    write_sealed(path, _KEY, record, tensors)


def read_solver_file(path: Path) -> tuple[Record, dict[str, Tensor]]:
    """Read a solver file; ValueError says in one sentence why it cannot be used."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no solver file {path}.")
    try:
        metadata, tensors = read_safetensors(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        if path.suffix != SUFFIX:
            published = path.suffix in (".pt", ".pth", ".ckpt")
            what = "is a published checkpoint" if published else f"ends in {path.suffix or 'no suffix'}"
            example = path if published else Path("student.pt")
            raise ValueError(
                f"{path} {what}, but a solver file ends in {SUFFIX}: convert a published student with "
                f"gas-ext import {example} --steps N --config NAME -o {example.stem}{SUFFIX}."
            ) from error
        raise ValueError(f"{path} is not a safetensors file, or is damaged: {error}.") from error
    if _KEY not in metadata:
        raise ValueError(f"{path} is a safetensors file but holds no solver saved by gas_ext.")
    record = _check_record(path, metadata[_KEY])
    if record["sha256"] != checksum(record, tensors):
        raise ValueError(f"{path} is damaged: its content does not match its SHA-256; get a fresh copy.")
    return {**_ABSENT, **record}, tensors


def _check_record(path: Path, text: str) -> Record:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged: its description is not JSON ({error}).") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} is damaged: its description is not a JSON object.")
    version = record.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has solver format {version!r}, but this gas_ext reads format {FORMAT_VERSION}; "
            "use the release that wrote it."
        )
    complete = {**_ABSENT, **record}
    for name, kind in _FIELDS.items():
        if not isinstance(complete.get(name, ...), kind):
            raise ValueError(f"{path} is damaged: its field {name!r} is missing or of the wrong type.")
    return record


def read_reference_checkpoint(path: Path, steps: int | None) -> tuple[dict[str, Tensor], int]:
    """Return the averaged parameters of a published student under this library's names, and its order.

    With steps=None the file's own number of steps is taken.
    The file lists [logits (N - 1), offsets (N), c_1, a_1, c_2, a_2, ...] (N each) under ema.shadow_params.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}.")
    try:
        content = read_torch_archive(path)
    except ValueError as error:
        raise ValueError(f"{path} is not a GS/GAS training checkpoint: {error}") from error
    averages = content.get("ema") if isinstance(content, dict) else None
    values = averages.get("shadow_params") if isinstance(averages, dict) else None
    if not isinstance(values, list) or not all(isinstance(value, Tensor) for value in values):
        raise ValueError(f"{path} is not a GS/GAS training checkpoint: it has no list ema.shadow_params.")
    shapes = [tuple(value.shape) for value in values]
    order = (len(values) - 2) // 2
    steps = values[1].numel() if steps is None and len(values) > 1 else steps or 0
    if order < 1 or shapes != [(steps - 1,)] + [(steps,)] * (2 * order + 1):
        found = f"parameters of shapes {shapes[:3]}"
        raise ValueError(f"{path} holds {found}, which is no student of {steps} steps; pass its own steps.")
    tensors = {
        "timestep_logits": values[0],
        "time_offsets": values[1],
        "data_corrections": torch.stack(values[2::2]),
        "state_corrections": torch.stack(values[3::2]),
    }
    return {name: value.detach() for name, value in tensors.items()}, order


def write_reference_checkpoint(
    path: Path, tensors: Mapping[str, Tensor], step: int, ema_decay: float
) -> None:
    """Write parameters in the form that `read_reference_checkpoint` reads and the published code loads.

    Averaged and last parameters are the same; the optimizer's state is empty.
    """
    values = [tensors["timestep_logits"], tensors["time_offsets"]]
    for pair in zip(tensors["data_corrections"], tensors["state_corrections"], strict=True):
        values += pair
    values = [value.detach().to("cpu", torch.float32).clone() for value in values]
    averages = {
        "decay": ema_decay,
        "num_updates": step,
        "shadow_params": values,
        "collected_params": [value.clone() for value in values],
    }
    content = {
        "model": [torch.nn.Parameter(value.clone()) for value in values],
        "ema": averages,
        "optim": {"state": {}, "param_groups": []},
        "step": step,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_file(path, buffer.getvalue())
