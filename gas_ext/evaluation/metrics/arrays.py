"""Feature vectors read in pieces, from tensors or from arrays mapped from disk, and their groups."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from gas_ext._utils.checks import whole_number

Features: TypeAlias = "Tensor | np.ndarray[tuple[int, ...], np.dtype[np.floating]]"

# Most numbers of one tile of a table of all pairs: 2 MiB in float64, which caches hold.
TILE = 1 << 18


def check_features(features: Features, minimum: int = 1, columns: int | None = None) -> None:
    """Refuse what is not ``(N, F)`` with at least `minimum` rows and, if given, `columns` columns.

    Raises
    ------
    TypeError
        If it is neither a tensor nor an array.
    ValueError
        In the other cases.
    """
    if not isinstance(features, Tensor | np.ndarray):
        raise TypeError(f"features are a {type(features).__name__}; expected a tensor or an array")
    if features.ndim != 2 or features.shape[1] == 0:
        raise ValueError(f"features have shape {tuple(features.shape)}; expected (samples, features)")
    if len(features) < minimum:
        raise ValueError(f"there are {len(features)} feature vectors; this needs at least {minimum}")
    if columns is not None and features.shape[1] != columns:
        raise ValueError(
            f"features have {features.shape[1]} columns and the reference has {columns}; use one extractor"
        )


def read_rows(features: Features, rows: slice, device: str | torch.device = "cpu") -> Tensor:
    """Return some rows as a float64 tensor; only they are read from an array mapped from disk."""
    part = features[rows]
    # A copy: torch warns of arrays that are read-only.
    tensor = part if isinstance(part, Tensor) else torch.from_numpy(np.array(part))
    return tensor.detach().to(device, torch.float64)


def pieces(start: int, stop: int, size: int) -> Iterator[slice]:
    """Cut ``range(start, stop)`` into slices of at most `size`.

    Examples
    --------
    >>> list(pieces(0, 5, 2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))


def all_finite(features: Features) -> bool:
    """Whether every number is finite."""
    return all(
        bool(torch.isfinite(read_rows(features, rows)).all()) for rows in pieces(0, len(features), 4096)
    )


def check_finite(features: Features, reference: Features) -> None:
    """Raise ValueError if a number is not finite: counts and means would hide it."""
    for name, vectors in (("features", features), ("the reference", reference)):
        if not all_finite(vectors):
            raise ValueError(f"{name} hold numbers that are not finite; check the samples")


def group_slices(count: int, groups: int) -> list[slice]:
    """Cut samples into consecutive groups whose sizes differ by at most one.

    Consecutive, so that labels that repeat with the seeds fall evenly on the groups.

    Raises
    ------
    ValueError
        If there are fewer samples than groups.

    Examples
    --------
    >>> group_slices(5, 2)
    [slice(0, 2, None), slice(2, 5, None)]
    """
    if not 1 <= whole_number("groups", groups) <= count:
        raise ValueError(f"{count} samples do not make {groups} groups; take between 1 and {count} groups")
    bounds = [count * group // groups for group in range(groups + 1)]
    return [slice(start, stop) for start, stop in pairwise(bounds)]


def kept_groups(groups: int) -> Tensor:
    """Return which groups each replicate keeps: the first all of them, the others all but one.

    Examples
    --------
    >>> kept_groups(2).tolist(), kept_groups(0).tolist()
    ([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0]], [[1.0]])
    """
    kept = torch.ones(1 + groups, max(groups, 1), dtype=torch.float64)
    kept[1:] -= torch.eye(groups, max(groups, 1), dtype=torch.float64)
    return kept


def kept_counts(kept: Tensor, parts: list[slice]) -> Tensor:
    """Return how many samples each replicate keeps."""
    return kept @ torch.tensor([part.stop - part.start for part in parts], dtype=torch.float64)
