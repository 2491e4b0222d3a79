"""One iteration's samples, and its randomness, which follows from the seed and its number alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gas_ext._utils.noise import stacked_noise, take


@dataclass(frozen=True)
class Batch:
    """What one iteration learns from: this process's part of it.

    Parameters
    ----------
    noise, target : Tensor
        (B, ...): noise, and the teacher's samples from it.
    condition : optional
        As for `GASSampler`, encoded; first dimension B throughout.
    images : Tensor, optional
        (B, ...) decoded samples, if it is them that the student's are compared with.
    labels : Tensor, optional
        int64 (B,), for a conditional discriminator.
    fresh_noise : Tensor, optional
        (B, ...) other noise, for the discriminator's fakes (GAS).
    """

    noise: Tensor
    target: Tensor
    condition: Any = None
    images: Tensor | None = None
    labels: Tensor | None = None
    fresh_noise: Tensor | None = None

    def __len__(self) -> int:
        return len(self.noise)

    def split(self, parts: int) -> list[Batch]:
        """Cut the batch into `parts` of nearly equal size; ValueError if it has fewer samples.

        Examples
        --------
        >>> [len(part) for part in Batch(torch.zeros(5, 2), torch.zeros(5, 2)).split(2)]
        [3, 2]
        """
        if parts > len(self):
            raise ValueError(
                f"A batch of {len(self)} samples (per process) cannot be cut into {parts} parts; lower "
                "accumulation."
            )
        if parts == 1:
            return [self]
        return [self._part(index) for index in torch.arange(len(self)).tensor_split(parts)]

    def with_fresh_noise(self, seed: int, iteration: int, positions: Sequence[int]) -> Batch:
        """Add the noise of the discriminator's fakes, at these positions of the iteration's whole batch."""
        shape, dtype, device = self.noise.shape[1:], self.noise.dtype, self.noise.device
        return replace(self, fresh_noise=fresh_noise(seed, iteration, positions, shape, dtype, device))

    def _part(self, index: Tensor) -> Batch:
        part = slice(int(index[0]), int(index[-1]) + 1)
        return Batch(**{name: take(value, part) for name, value in vars(self).items()})


def derived_seed(*parts: int | str) -> int:
    """Return a seed of 32 bits that follows from its parts, and looks random.

    Examples
    --------
    >>> derived_seed(0, "noise", 17) == derived_seed(0, "noise", 17)
    True
    >>> derived_seed(0, "noise", 17) == derived_seed(0, "noise", 18)
    False
    """
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big")


def fresh_noise(
    seed: int,
    iteration: int,
    places: Sequence[int],
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Draw the noise of the discriminator's fakes at these places of an iteration's whole batch.

    It depends on nothing else: a resumed run, and any number of processes, draw the same.

    Examples
    --------
    >>> whole, part = fresh_noise(0, 5, range(4), (2,)), fresh_noise(0, 5, range(2, 4), (2,))
    >>> torch.equal(whole[2:], part)
    True
    """
    seeds = [derived_seed(seed, "fresh noise", iteration, place) for place in places]
    return stacked_noise(seeds, shape, dtype, device)
