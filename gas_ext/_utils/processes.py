"""The processes of a run: one, or those that torchrun started."""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor

# How long a process waits for another, e.g. for its share of the teacher's samples. torchrun ends the others
# as soon as one has died, so nobody waits this long for a dead one.
_PATIENCE = timedelta(hours=24)


@dataclass(frozen=True)
class Launch:
    """Position of this process among those that torchrun (or ``accelerate launch``) started.

    `local_rank` is its number on this machine; None if nothing started it.
    """

    rank: int
    count: int
    local_rank: int | None

    @classmethod
    def read(cls) -> Launch:
        """Read RANK, WORLD_SIZE and LOCAL_RANK; empty ones count as absent, ValueError unless integers."""
        rank, count, local = map(_environment_integer, ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        return cls(rank or 0, 1 if count is None else count, local)


def _environment_integer(name: str) -> int | None:
    text = os.environ.get(name, "")
    try:
        return int(text) if text else None
    except ValueError:
        raise ValueError(f"{name} is {text!r}, but must be an integer; unset it, or use torchrun.") from None


class Processes:
    """A single process; see `join_processes` for several."""

    rank = 0
    count = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files and reports the progress."""
        return self.rank == 0

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over all processes, with the same bits in each."""

    def any(self, value: bool) -> bool:
        """Return whether the value is true in any process."""
        return value

    def wait(self) -> None:
        """Return when all processes have called this."""

    def leave(self) -> None:
        """End what `join_processes` began."""


class _JoinedProcesses(Processes):
    """Processes joined by accelerate: NCCL between GPUs, gloo between CPUs."""

    def __init__(self, device: torch.device) -> None:
        # Its functions take the process group at import time as a default. Imported later, as torch._dynamo
        # does, it would hold the group forever: threads of gloo would outlive the interpreter and abort the
        # process at its end.
        import torch.distributed.nn.functional  # noqa: F401
        from accelerate import PartialState

        # Not an Accelerator: it would fix one precision for all runs of a Python process.
        self._state = PartialState(cpu=device.type == "cpu", timeout=_PATIENCE)
        self.rank = self._state.process_index
        self.count = self._state.num_processes
        self._device = device
        if device.type == "cpu":
            # The threads of gloo must not outlive the interpreter. Those of NCCL end by themselves, and here
            # might wait for processes that have failed.
            atexit.register(self.leave)

    def add(self, tensors: Sequence[Tensor]) -> None:
        from accelerate.utils import reduce

        if not tensors:
            return
        whole = reduce(torch.cat([tensor.detach().flatten() for tensor in tensors]), "sum")
        for tensor, part in zip(tensors, whole.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def any(self, value: bool) -> bool:
        flag = torch.tensor([float(value)], device=self._device)
        self.add([flag])
        return bool(flag.item())

    def wait(self) -> None:
        self.any(False)  # a barrier that works alike on gloo and NCCL

    def leave(self) -> None:
        self._state.destroy_process_group()


def join_processes(device: str | torch.device) -> Processes:
    """Join the processes that torchrun (or ``accelerate launch``) started for one run.

    >>> join_processes("cpu").count
    1
    """
    if Launch.read().count == 1:
        return Processes()
    return _JoinedProcesses(torch.device(device))
