"""Precision, recall, density and coverage, by nearest neighbors in feature space."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gas_ext._utils.checks import whole_number
from gas_ext.evaluation.metrics.arrays import (
    TILE,
    Features,
    check_features,
    check_finite,
    group_slices,
    kept_counts,
    kept_groups,
    pieces,
    read_rows,
)

# Columns of one tile of the table of distances.
_WIDTH = 1024


class NeighborMetrics(NamedTuple):
    """The four numbers of `neighbor_metrics`."""

    precision: float
    recall: float
    density: float
    coverage: float


def neighbor_metrics(
    features: Features, reference: Features, k: int = 5, *, device: str | torch.device = "cpu"
) -> NeighborMetrics:
    """Precision and recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797).

    The ball of a vector reaches to its k-th nearest neighbor in its own set, itself not counted.

    - precision: the fraction of samples inside the ball of any reference vector;
    - recall: the fraction of reference vectors inside the ball of any sample;
    - density: the mean number of reference balls around a sample, divided by k; may be above 1;
    - coverage: the fraction of reference balls that hold a sample.

    All depend on the sizes of both sets and on k: only numbers with the same three compare. Only tiles of
    the table of distances are held at a time, in float64; the border of a ball is part of it.

    Parameters
    ----------
    features, reference : Tensor or ndarray
        Shapes ``(N, F)`` and ``(M, F)``, more than k rows each; may be mapped from disk.
    k : int
        Which neighbor; the papers take 3 for precision and recall and 5 for density and coverage.
    device : device
        Where the distances are computed.

    Raises
    ------
    ValueError
        If shapes do not fit, a set has too few vectors, or a number is not finite.

    Examples
    --------
    >>> reference = torch.arange(4.0)[:, None]
    >>> neighbor_metrics(torch.tensor([[0.5], [1.5], [9.0]]), reference, k=1)
    NeighborMetrics(precision=0.6666666666666666, recall=1.0, density=1.3333333333333333, coverage=0.75)
    """
    table = neighbor_tables(features, reference, k, device=device)
    check_finite(features, reference)
    return NeighborMetrics(*(float(column[0]) for column in table))


def neighbor_tables(
    features: Features,
    reference: Features,
    k: int = 5,
    groups: int = 0,
    device: str | torch.device = "cpu",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the four metrics of all samples, then without each group of samples, ``(1 + groups,)`` each."""
    if whole_number("k", k) < 1:
        raise ValueError(f"k = {k} is no neighbor; take at least 1")
    check_features(reference, k + 1)
    check_features(features, k + 1, reference.shape[1])
    parts = group_slices(len(features), max(groups, 1))
    replicates = 1 + groups
    center = _mean(reference, device)
    edge = TILE // _WIDTH

    everything = [slice(0, len(reference))]
    radii = torch.cat(
        [
            _radii(reference, rows, everything, 0, k, center, device)[:, 0]
            for rows in pieces(0, len(reference), edge)
        ]
    )
    hits = torch.zeros(len(features), dtype=torch.float64, device=device)  # reference balls around a sample
    covered = torch.zeros(len(parts), len(reference), dtype=torch.bool, device=device)  # by a group
    recalled = torch.zeros(replicates, len(reference), dtype=torch.bool, device=device)
    for group, part in enumerate(parts):
        keeping = [replicate for replicate in range(replicates) if replicate != group + 1]
        for rows in pieces(part.start, part.stop, edge):
            samples = read_rows(features, rows, device) - center
            reach = _radii(features, rows, parts, groups, k, center, device)
            for columns in pieces(0, len(reference), _WIDTH):
                squares = _squared_distances(samples, read_rows(reference, columns, device) - center)
                inside = squares <= radii[columns]
                hits[rows] += inside.sum(dim=1)
                covered[group, columns] |= inside.any(dim=0)
                for replicate in keeping:
                    recalled[replicate, columns] |= (squares <= reach[:, replicate, None]).any(dim=0)
    return _summary(hits.cpu(), covered.cpu(), recalled.cpu(), parts, k)


def _summary(
    hits: Tensor, covered: Tensor, recalled: Tensor, parts: list[slice], k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fractions and means over the samples that each replicate keeps."""
    kept = kept_groups(len(recalled) - 1)
    count = kept_counts(kept, parts)
    precise = torch.stack([(hits[part] > 0).double().sum() for part in parts])
    number = torch.stack([hits[part].sum() for part in parts])
    coverage = ((kept @ covered.double()) > 0).double().mean(dim=1)
    return kept @ precise / count, recalled.double().mean(dim=1), kept @ number / (k * count), coverage


def _radii(
    features: Features,
    rows: slice,
    parts: list[slice],
    groups: int,
    k: int,
    center: Tensor,
    device: str | torch.device,
) -> Tensor:
    """Squared distances from some rows to their k-th neighbors: in all parts, then without each part.

    Shape ``(rows, 1 + groups)``. The k nearest within every part are enough to know all of these.
    """
    own = read_rows(features, rows, device) - center
    nearest = []
    for part in parts:
        best = own.new_empty(len(own), 0)
        for columns in pieces(part.start, part.stop, _WIDTH):
            squares = _squared_distances(own, read_rows(features, columns, device) - center)
            _forget_self(squares, rows, columns)
            best = torch.cat([best, squares], dim=1)
            best = best.topk(min(k, best.shape[1]), dim=1, largest=False).values
        nearest.append(best)
    kept = [nearest] + [nearest[:group] + nearest[group + 1 :] for group in range(groups)]
    if min(sum(best.shape[1] for best in some) for some in kept) < k:
        raise ValueError(f"too few samples are left without a group for k = {k}; take fewer groups")
    return torch.stack([torch.cat(some, dim=1).kthvalue(k, dim=1).values for some in kept], dim=1)


def _forget_self(squares: Tensor, rows: slice, columns: slice) -> None:
    """Put infinity where a row meets itself."""
    first, last = max(rows.start, columns.start), min(rows.stop, columns.stop)
    index = torch.arange(first, max(first, last), device=squares.device)
    squares[index - rows.start, index - columns.start] = torch.inf


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distances ``(A, B)``; those of equal vectors are 0 in spite of rounding."""
    scale = a.square().sum(dim=1, keepdim=True) + b.square().sum(dim=1)
    squares = scale - 2 * (a @ b.T)
    return torch.where(squares <= 1e-13 * scale, 0.0, squares)


def _mean(features: Features, device: str | torch.device) -> Tensor:
    """Mean vector; distances lose fewest digits around it."""
    total = torch.zeros(features.shape[1], dtype=torch.float64, device=device)
    for rows in pieces(0, len(features), 4096):
        total += read_rows(features, rows, device).sum(dim=0)
    return total / len(features)
