"""Feature vectors, read slice by slice from tensors or memory-mapped arrays, and their jackknife groups."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from gas_ext._utils.checks import whole_number

Features: TypeAlias = "Tensor | np.ndarray[tuple[int, ...], np.dtype[np.floating]]"

TILE = 1 << 18  # entries of one tile of a table of all pairs: 2 MiB in float64, which fits in caches
ROWS = 4096  # rows read at a time


def check_features(features: Features, minimum: int = 1, columns: int | None = None) -> None:
    """Raise TypeError or ValueError unless the features are ``(N, F)`` with at least `minimum` rows."""
    if not isinstance(features, Tensor | np.ndarray):
        raise TypeError(f"The features are a {type(features).__name__}, but must be a tensor or an array.")
    if features.ndim != 2 or features.shape[1] == 0:
        shape = tuple(features.shape)
        raise ValueError(f"The features have shape {shape}, but must have shape (samples, features).")
    if len(features) < minimum:
        raise ValueError(f"There are {len(features)} feature vectors; pass at least {minimum}.")
    if columns is not None and features.shape[1] != columns:
        raise ValueError(
            f"The features have {features.shape[1]} columns, but the reference has {columns}; use one "
            "extractor for both."
        )


def read_rows(features: Features, rows: slice, device: str | torch.device = "cpu") -> Tensor:
    """Return some rows as a float64 tensor; a memory-mapped array is read only there."""
    part = features[rows]
    # A copy: torch warns about read-only arrays.
    tensor = part if isinstance(part, Tensor) else torch.from_numpy(np.array(part))
    return tensor.detach().to(device, torch.float64)


def pieces(start: int, stop: int, size: int = ROWS) -> Iterator[slice]:
    """Cut ``range(start, stop)`` into slices of at most `size`.

    >>> list(pieces(0, 5, 2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))


def all_finite(features: Features) -> bool:
    """Return whether every entry is finite."""
    return all(bool(torch.isfinite(read_rows(features, rows)).all()) for rows in pieces(0, len(features)))


def check_finite(features: Features, reference: Features) -> None:
    """Raise ValueError if an entry is not finite: counts and means would hide it."""
    for name, vectors in (("features", features), ("reference features", reference)):
        if not all_finite(vectors):
            raise ValueError(f"The {name} hold values that are not finite; check the samples.")


def group_slices(count: int, groups: int) -> list[slice]:
    """Cut samples into groups whose sizes differ by at most one; ValueError if a group would be empty.

    Groups are consecutive, so that labels that repeat with the seeds are spread evenly over them.

    >>> group_slices(5, 2)
    [slice(0, 2, None), slice(2, 5, None)]
    """
    if not 1 <= whole_number("groups", groups) <= count:
        raise ValueError(f"groups is {groups}, but must be between 1 and {count}, the number of samples.")
    bounds = [count * group // groups for group in range(groups + 1)]
    return [slice(start, stop) for start, stop in pairwise(bounds)]


def replicate_weights(groups: int) -> Tensor:
    """Return which groups enter each replicate: all of them in the first, all but one in the others.

    >>> replicate_weights(2).tolist(), replicate_weights(0).tolist()
    ([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0]], [[1.0]])
    """
    weights = torch.ones(1 + groups, max(groups, 1), dtype=torch.float64)
    weights[1:] -= torch.eye(groups, max(groups, 1), dtype=torch.float64)
    return weights


def replicate_sizes(weights: Tensor, parts: list[slice]) -> Tensor:
    """Return the number of samples of each replicate."""
    return weights @ torch.tensor([part.stop - part.start for part in parts], dtype=torch.float64)
