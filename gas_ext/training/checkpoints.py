"""Checkpoints: safetensors with one JSON record, written completely or not at all, and checked when read.

A checkpoint is a nested dict of tensors and plain values. Tensors are stored under the path of their names
("average/time_offsets"), everything else in the record, and a SHA-256 covers both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from gas_ext._utils.records import COUNT, OPTIONAL_RECORD, RECORD, Field, Fields, check_record, shown
from gas_ext._utils.sealed_files import read_sealed, write_sealed

FORMAT_VERSION = 1
_STORED = 2  # the newest ones

_KEY = "gas_ext_checkpoint"
_PATTERN = "iteration-*.safetensors"
_SEPARATOR = "/"

_FIELDS: Fields = {"iteration": COUNT, "state": RECORD}
_ANY_NUMBER = Field((int, float, type(None)), -math.inf, math.inf)
_TENSORS = Field((dict,), each=Field((Tensor,)))
_VALIDATION = Field((dict,), each=_ANY_NUMBER, inside=dict.fromkeys(("iteration", "loss", "l1"), _ANY_NUMBER))
_STATE: Fields = {
    "solver": _TENSORS,
    "average": _TENSORS,
    "best": _TENSORS,
    "optimizer": Field((dict,), each=RECORD),
    "losses": Field((Tensor,)),
    "rejected": COUNT,
    "in_a_row": COUNT,
    "adversary": OPTIONAL_RECORD,
    "validation": Field((dict,), each=_VALIDATION),
    "settings": RECORD,
}


class Checkpoint(NamedTuple):
    """Content of a checkpoint file, with tensors on the CPU."""

    path: Path
    iteration: int
    state: dict[str, Any]


def save_checkpoint(folder: Path, iteration: int, state: Mapping[str, Any]) -> Path:
    """Write a checkpoint after `iteration` iterations, then remove all but the newest two.

    `state` has nested dicts of tensors and JSON values; names are strings without "/".

    Examples
    --------
    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save_checkpoint(Path(folder), 5, {"solver": {"a": torch.ones(2)}, "rejected": 0})
    ...     load_checkpoint(path).state
    {'solver': {'a': tensor([1., 1.])}, 'rejected': 0}
    """
    plain, tensors = _pack(state)
    record = {"format_version": FORMAT_VERSION, "iteration": iteration, "state": plain}
    path = folder / f"iteration-{iteration:08d}.safetensors"
    write_sealed(path, _KEY, record, tensors)
    for old in checkpoint_paths(folder)[:-_STORED]:
        old.unlink()
    return path


def checkpoint_paths(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, oldest first."""
    return sorted(folder.glob(_PATTERN))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; ValueError if it is damaged."""
    record, tensors = read_sealed(path, _KEY, "checkpoint", _FIELDS, version=FORMAT_VERSION)
    return Checkpoint(path, record["iteration"], _unpack(record["state"], tensors, path))


def _check_state(checkpoint: Checkpoint) -> None:
    """Raise ValueError unless a checkpoint has everything that a run resumes from."""
    state = check_record(checkpoint.state, _STATE, checkpoint.path)
    solver, average = (
        {name: value.shape for name, value in state[part].items()} for part in ("solver", "average")
    )
    if solver != average or sorted(solver.values()) != sorted(
        value.shape for value in state["best"].values()
    ):
        raise ValueError(f"{checkpoint.path} is damaged: its averages have other shapes than its parameters.")
    if tuple(state["losses"].shape) != (checkpoint.iteration,):
        raise ValueError(f"{checkpoint.path} is damaged: it has no loss for each of its iterations.")


def newest_checkpoint(folder: Path, report: Callable[[str], object] = lambda line: None) -> Checkpoint | None:
    """Read the newest valid checkpoint of a run; None if there is no checkpoint.

    Invalid ones that are newer are reported; ValueError if all are invalid.
    """
    faults: list[str] = []
    for path in reversed(checkpoint_paths(folder)):
        try:
            checkpoint = load_checkpoint(path)
            _check_state(checkpoint)
        except ValueError as error:
            faults.append(str(error))
            continue
        for fault in faults:
            report(f"{fault} Resuming from {checkpoint.path.name} instead.")
        return checkpoint
    if faults:
        raise ValueError(
            f"No checkpoint in {folder} can be used ({' '.join(faults)}); start over with --no-resume, or "
            "choose another folder with -o."
        )
    return None


def remove_newer(folder: Path, iteration: int) -> None:
    """Remove checkpoints of later iterations (all, with -1), and half-written files of killed processes."""
    for path in checkpoint_paths(folder):
        if path.name > f"iteration-{iteration:08d}.safetensors" or iteration < 0:
            path.unlink()
    for leftover in folder.glob(f".{_PATTERN}*"):
        leftover.unlink()


def _pack(tree: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Separate a nested dict into its plain values and its tensors by path."""
    plain: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, Tensor):
            tensors[path] = value.detach().to("cpu", copy=True).contiguous()
        elif isinstance(value, Mapping):
            plain[name], inner = _pack(value, path + _SEPARATOR)
            tensors.update(inner)
        else:
            plain[name] = value
    return plain, tensors


def _unpack(plain: Mapping[str, Any], tensors: Mapping[str, Tensor], source: Path) -> dict[str, Any]:
    """Put the tensors back where `_pack` took them from."""
    tree = dict(plain)
    for path, tensor in tensors.items():
        *parents, name = path.split(_SEPARATOR)
        group: Any = tree
        for parent in parents:
            group = group.get(parent) if isinstance(group, dict) else None
        if not isinstance(group, dict):
            raise ValueError(
                f"{source} is damaged: its tensor {shown(path)} belongs to no part of the state."
            )
        group[name] = tensor
    return tree
