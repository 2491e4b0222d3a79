"""The order in which a trainer sees its samples, reproducible from any iteration."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gas_ext._utils.checks import whole_number


class ShuffledBatches:
    """Endless shuffled passes over samples; each batch depends only on the seed and the iteration.

    Batches are full: a pass ends when fewer samples than a batch are left, and those wait for a later pass.

    Parameters
    ----------
    samples : int
        Number of samples; indices are 0 to samples - 1.
    batch_size : int
        Indices per iteration over all processes; at most `samples` are used.
    seed : int
        Seed of the order.
    iteration : int
        First iteration, counted from 0.
    rank, world_size : int
        This process and their number; each gets an equal part of every batch.

    Attributes
    ----------
    iteration : int
        The next iteration; it can be set.

    Raises
    ------
    ValueError
        If a number is out of range, or a batch cannot be split into equal parts.

    Examples
    --------
    >>> batches = ShuffledBatches(5, 2)
    >>> first, second = next(batches), next(batches)
    >>> resumed = ShuffledBatches(5, 2, iteration=1)
    >>> torch.equal(next(resumed), second), resumed.iteration
    (True, 2)
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        seed: int = 0,
        *,
        iteration: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        for name, value in (("samples", samples), ("batch_size", batch_size), ("world_size", world_size)):
            whole_number(name, value, 1)
        self.samples = samples
        self.batch_size = min(batch_size, samples)
        self.seed = seed
        self.iteration = whole_number("iteration", iteration, 0)
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank} of {world_size} processes; expected 0 to {world_size - 1}.")
        if self.batch_size % world_size:
            raise ValueError(
                f"A batch of {self.batch_size} cannot be split equally between {world_size} processes; use a "
                "batch size that is a multiple of the number of processes."
            )
        share = self.batch_size // world_size
        self._share = slice(rank * share, (rank + 1) * share)
        self._start()

    def _start(self) -> None:
        self._generator = torch.Generator().manual_seed(self.seed)
        self._pass = -1
        self._order = torch.empty(0, dtype=torch.int64, device="cpu")

    def __iter__(self) -> ShuffledBatches:
        return self

    def __next__(self) -> Tensor:
        """Return this process's indices of the next batch."""
        wanted, index = divmod(self.iteration, self.samples // self.batch_size)
        if wanted < self._pass:
            self._start()
        while self._pass < wanted:  # a permutation takes about a millisecond per 50,000 samples
            self._order = torch.randperm(self.samples, generator=self._generator, device="cpu")
            self._pass += 1
        self.iteration += 1
        return self._order[index * self.batch_size : (index + 1) * self.batch_size][self._share]

    def state_dict(self) -> dict[str, Any]:
        """Return the position as plain numbers, the same in all processes."""
        return {name: getattr(self, name) for name in ("samples", "batch_size", "seed", "iteration")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume at a position; ValueError if it belongs to another order."""
        for name in ("samples", "batch_size", "seed"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"The position was saved with {name} {state[name]}, not {getattr(self, name)}; resume "
                    "with the saved value."
                )
        self.iteration = int(state["iteration"])
