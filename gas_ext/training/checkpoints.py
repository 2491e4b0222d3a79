"""Checkpoints: safetensors with one JSON record, complete or absent, and checked when they are read.

A checkpoint is a nested dict of tensors and plain values. Its tensors go into the file by the path of their
names ("average/time_offsets"), everything else into the record, and a SHA-256 covers both.
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
KEPT = 2  # the newest ones

_KEY = "gas_ext_checkpoint"
_PATTERN = "iteration-*.safetensors"
_SEPARATOR = "/"

_FIELDS: Fields = {"iteration": COUNT, "state": RECORD}
_ANY_NUMBER = Field((int, float, type(None)), -math.inf, math.inf)
_TENSORS = Field((dict,), each=Field((Tensor,)))
_JUDGED = Field((dict,), each=_ANY_NUMBER, inside=dict.fromkeys(("iteration", "loss", "l1"), _ANY_NUMBER))
_STATE: Fields = {
    "solver": _TENSORS,
    "average": _TENSORS,
    "best": _TENSORS,
    "optimizer": Field((dict,), each=RECORD),
    "losses": Field((Tensor,)),
    "rejected": COUNT,
    "in_a_row": COUNT,
    "adversary": OPTIONAL_RECORD,
    "validation": Field((dict,), each=_JUDGED),
    "settings": RECORD,
}


class Checkpoint(NamedTuple):
    """What a file holds.

    Attributes
    ----------
    path : Path
        The file.
    iteration : int
        Iterations that had been made.
    state : dict
        What was saved, with tensors on the CPU.
    """

    path: Path
    iteration: int
    state: dict[str, Any]


def save_checkpoint(folder: Path, iteration: int, state: Mapping[str, Any]) -> Path:
    """Write a checkpoint, and then remove all but the newest two.

    Parameters
    ----------
    folder : Path
        Made if it does not exist.
    iteration : int
        Iterations made so far.
    state : mapping
        Nested dicts of tensors and JSON values; names are strings without "/".

    Examples
    --------
    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as name:
    ...     _ = save_checkpoint(Path(name), 5, {"solver": {"a": torch.ones(2)}, "rejected": 0})
    ...     checkpoint = newest_checkpoint(Path(name))
    >>> checkpoint.iteration, checkpoint.state
    (5, {'solver': {'a': tensor([1., 1.])}, 'rejected': 0})
    """
    plain, tensors = _pack(state)
    record = {"format_version": FORMAT_VERSION, "iteration": iteration, "state": plain}
    path = folder / f"iteration-{iteration:08d}.safetensors"
    write_sealed(path, _KEY, record, tensors)
    for old in checkpoint_paths(folder)[:-KEPT]:
        old.unlink()
    return path


def checkpoint_paths(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, oldest first."""
    return sorted(folder.glob(_PATTERN))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; ValueError says in one sentence why it cannot be used."""
    record, tensors = read_sealed(path, _KEY, "checkpoint", _FIELDS, version=FORMAT_VERSION)
    return Checkpoint(path, record["iteration"], _unpack(record["state"], tensors, path))


def check_state(checkpoint: Checkpoint) -> None:
    """Raise ValueError unless a checkpoint has all that a run resumes from."""
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


def newest_checkpoint(
    folder: Path,
    tell: Callable[[str], object] = lambda line: None,
    check: Callable[[Checkpoint], object] = lambda checkpoint: None,
) -> Checkpoint | None:
    """Read the newest checkpoint that is intact; None if there is no checkpoint at all.

    Parameters
    ----------
    folder : Path
        It need not exist.
    tell : callable
        Told in one sentence about each checkpoint that cannot be used.
    check : callable
        Raises ValueError if the content of an intact file is not what is needed.

    Raises
    ------
    ValueError
        If there are checkpoints, but none can be used.
    """
    faults: list[str] = []
    for path in reversed(checkpoint_paths(folder)):
        try:
            checkpoint = load_checkpoint(path)
            check(checkpoint)
        except ValueError as error:
            faults.append(str(error))
            continue
        for fault in faults:
            tell(f"{fault} Resuming from {checkpoint.path.name} instead.")
        return checkpoint
    if faults:
        raise ValueError(
            f"No checkpoint in {folder} can be used ({' '.join(faults)}): start over with --no-resume, or "
            "choose another folder with -o."
        )
    return None


def remove_newer(folder: Path, iteration: int) -> None:
    """Remove checkpoints of later iterations (all, with -1), and what killed processes left half-written."""
    for path in checkpoint_paths(folder):
        if path.name > f"iteration-{iteration:08d}.safetensors" or iteration < 0:
            path.unlink()
    for leftover in folder.glob(f".{_PATTERN}*"):
        leftover.unlink()


def _pack(tree: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Separate a nested dict into plain values, without its tensors, and tensors by path."""
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
        place: Any = tree
        for parent in parents:
            place = place.get(parent) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            raise ValueError(f"{source} is damaged: it has no place for its tensor {shown(path)}.")
        place[name] = tensor
    return tree
