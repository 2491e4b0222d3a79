"""Solver files: safetensors with one JSON record, and the checkpoints published with the GS/GAS paper."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gas_ext._utils.files import write_file
from gas_ext._utils.records import COUNT, FLAG, OPTIONAL_NUMBER, OPTIONAL_TEXT, RECORD, TEXT, Field, Fields
from gas_ext._utils.sealed_files import read_sealed, write_sealed
from gas_ext.safe_pickle import read_torch_archive
from gas_ext.solvers.timesteps import MAX_STEPS

FORMAT_VERSION = 1
SUFFIX = ".safetensors"
_KEY = "gas_ext_solver"

Record: TypeAlias = dict[str, Any]


_FIELDS: Fields = {
    "schedule": RECORD,
    "steps": Field((int,), 0, MAX_STEPS),
    "order": Field((int,), 0, MAX_STEPS),
    "t_eps": Field((float,)),
    "theory_guidance": FLAG,
    "theory_order": COUNT,
    "compat": OPTIONAL_TEXT,
    "kind": TEXT,  # the preset
    "prediction_type": OPTIONAL_TEXT,
    "guidance_scale": OPTIONAL_NUMBER,
    "teacher": RECORD,
    "training": RECORD,
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
    if path.suffix != SUFFIX and not _is_safetensors(path):
        published = path.suffix in (".pt", ".pth", ".ckpt")
        what = "is a published checkpoint" if published else f"ends in {path.suffix or 'no suffix'}"
        example = path if published else Path("student.pt")
        raise ValueError(
            f"{path} {what}, but a solver file ends in {SUFFIX}: convert a published student with "
            f"gas-ext import {example} --steps N --config NAME -o {example.stem}{SUFFIX}."
        )
    record, tensors = read_sealed(path, _KEY, "solver", _FIELDS, _ABSENT, FORMAT_VERSION)
    shapes = parameter_shapes(record["steps"], record["order"])
    for name, shape in shapes.items():  # before anything of these sizes is built
        if name not in tensors or tuple(tensors[name].shape) != shape:
            got = "nothing" if name not in tensors else f"{tuple(tensors[name].shape)} numbers"
            raise ValueError(
                f"{path} holds {got} for {name}, but {record['steps']} steps of order {record['order']} need "
                f"{shape}."
            )
    return record, tensors


def _is_safetensors(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def parameter_shapes(steps: int, order: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a solver's parameters by name."""
    tables = order, steps
    return {
        "timestep_logits": (max(steps - 1, 0),),
        "time_offsets": (steps,),
        "data_corrections": tables,
        "state_corrections": tables,
    }


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
