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
# Values of fields that older files lack.
_ABSENT = {"kind": "gs"}


def write_solver_file(path: Path, record: Record, tensors: Mapping[str, Tensor]) -> None:
    """Write a solver atomically."""
    write_sealed(path, _KEY, {"format_version": FORMAT_VERSION, **record}, tensors)


def read_solver_file(path: Path) -> tuple[Record, dict[str, Tensor]]:
    """Read a solver file; ValueError unless its record is valid and its parameters have the right shapes."""
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
    steps, order = record["steps"], record["order"]
    return record, check_parameters(tensors, steps, order, path)


def check_parameters(tensors: dict[str, Tensor], steps: int, order: int, path: Path) -> dict[str, Tensor]:
    """Return the parameters of a solver; ValueError unless they are complete, of the right shapes and finite.

    This precedes the solver itself, so that nothing is built with sizes that only the record claims.
    """
    shapes = {
        "timestep_logits": (max(steps - 1, 0),),
        "time_offsets": (steps,),
        "data_corrections": (order, steps),
        "state_corrections": (order, steps),
    }
    for name, shape in shapes.items():
        value = tensors.get(name)
        if value is None or value.shape != shape or not value.is_floating_point():
            got = "nothing" if value is None else f"{tuple(value.shape)} {value.dtype} numbers"
            raise ValueError(
                f"{path} holds {got} for {name}, but {steps} steps of order {order} need {shape} "
                "floating-point numbers; get a fresh copy."
            )
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{path} holds numbers in {name} that are not finite; get a fresh copy.")
    return {name: tensors[name] for name in shapes}


def _is_safetensors(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def read_reference_checkpoint(path: Path, steps: int | None) -> tuple[dict[str, Tensor], int]:
    """Return the averaged parameters of a published student under this library's names, and its order.

    The file lists [logits (N - 1), offsets (N), c_1, a_1, c_2, a_2, ...] (N each) under ema.shadow_params.
    With steps=None any N is accepted.
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
        raise ValueError(
            f"{path} holds {found}, which is not a student of {steps} steps; pass its number of steps."
        )
    tensors = {
        "timestep_logits": values[0],
        "time_offsets": values[1],
        "data_corrections": torch.stack(values[2::2]),
        "state_corrections": torch.stack(values[3::2]),
    }
    tensors = {name: value.detach() for name, value in tensors.items()}
    return check_parameters(tensors, steps, order, path), order


def write_reference_checkpoint(
    path: Path, tensors: Mapping[str, Tensor], step: int, ema_decay: float
) -> None:
    """Write parameters as a checkpoint that the published code loads, with an empty optimizer state.

    Averaged and latest parameters are the same.
    """
    values = [tensors["timestep_logits"], tensors["time_offsets"]]
    for pair in zip(tensors["data_corrections"], tensors["state_corrections"], strict=True):
        values += pair
    values = [value.detach().to("cpu", torch.float32).clone() for value in values]
    content = {
        "model": [torch.nn.Parameter(value.clone()) for value in values],
        "ema": {
            "decay": ema_decay,
            "num_updates": step,
            "shadow_params": values,
            "collected_params": [value.clone() for value in values],
        },
        "optim": {"state": {}, "param_groups": []},
        "step": step,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_file(path, buffer.getvalue())
