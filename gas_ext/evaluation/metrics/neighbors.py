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
    pieces,
    read_rows,
    replicate_sizes,
    replicate_weights,
)

_WIDTH = 1024  # columns of one tile of the table of distances


class NeighborMetrics(NamedTuple):
    """Result of `neighbor_metrics`."""

    precision: float
    recall: float
    density: float
    coverage: float


def neighbor_metrics(
    features: Features, reference: Features, k: int = 5, *, device: str | torch.device = "cpu"
) -> NeighborMetrics:
    """Return precision and recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797).

    The ball of a vector extends to its k-th nearest neighbor in its own set, excluding itself, and includes
    its border.

    - precision: the fraction of samples inside the ball of any reference vector;
    - recall: the fraction of reference vectors inside the ball of any sample;
    - density: the mean number of reference balls around a sample, divided by k; may exceed 1;
    - coverage: the fraction of reference balls that contain a sample.

    All depend on the sizes of both sets and on k: compare only values with the same three. Memory holds one
    tile of the table of distances at a time, in float64.

    Parameters
    ----------
    features, reference : Tensor or ndarray
        Shapes ``(N, F)`` and ``(M, F)``, more than k rows each; may be memory-mapped.
    k : int
        Which neighbor; default 5. The papers use 3 for precision and recall and 5 for density and coverage.
    device : device
        Where the distances are computed; default "cpu".

    Raises
    ------
    ValueError
        If shapes do not fit, a set has too few vectors, or a value is not finite.

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
    whole_number("k", k, 1)
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
    # Per sample, the reference balls around it; per group and replicate, the reference vectors covered.
    hits = torch.zeros(len(features), dtype=torch.float64, device=device)
    covered = torch.zeros(len(parts), len(reference), dtype=torch.bool, device=device)
    recalled = torch.zeros(replicates, len(reference), dtype=torch.bool, device=device)
    for group, part in enumerate(parts):
        including = [replicate for replicate in range(replicates) if replicate != group + 1]
        for rows in pieces(part.start, part.stop, edge):
            samples = read_rows(features, rows, device) - center
            reach = _radii(features, rows, parts, groups, k, center, device)
            for columns in pieces(0, len(reference), _WIDTH):
                squares = _squared_distances(samples, read_rows(reference, columns, device) - center)
                inside = squares <= radii[columns]
                hits[rows] += inside.sum(dim=1)
                covered[group, columns] |= inside.any(dim=0)
                for replicate in including:
                    recalled[replicate, columns] |= (squares <= reach[:, replicate, None]).any(dim=0)
    return _summary(hits.cpu(), covered.cpu(), recalled.cpu(), parts, k)


def _summary(
    hits: Tensor, covered: Tensor, recalled: Tensor, parts: list[slice], k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the fractions and means over the samples of each replicate."""
    weights = replicate_weights(len(recalled) - 1)
    count = replicate_sizes(weights, parts)
    precise = torch.stack([(hits[part] > 0).double().sum() for part in parts])
    number = torch.stack([hits[part].sum() for part in parts])
    coverage = ((weights @ covered.double()) > 0).double().mean(dim=1)
    precision, density = weights @ precise / count, weights @ number / (k * count)
    return precision, recalled.double().mean(dim=1), density, coverage


def _radii(
    features: Features,
    rows: slice,
    parts: list[slice],
    groups: int,
    k: int,
    center: Tensor,
    device: str | torch.device,
) -> Tensor:
    """Return squared distances from some rows to their k-th neighbors: in all parts, then without each part.

    Shape ``(rows, 1 + groups)``. The k nearest within each part determine all of these.
    """
    own = read_rows(features, rows, device) - center
    nearest = []
    for part in parts:
        best = own.new_empty(len(own), 0)
        for columns in pieces(part.start, part.stop, _WIDTH):
            squares = _squared_distances(own, read_rows(features, columns, device) - center)
            _exclude_self(squares, rows, columns)
            best = torch.cat([best, squares], dim=1)
            best = best.topk(min(k, best.shape[1]), dim=1, largest=False).values
        nearest.append(best)
    replicates = [nearest] + [nearest[:group] + nearest[group + 1 :] for group in range(groups)]
    if min(sum(best.shape[1] for best in some) for some in replicates) < k:
        raise ValueError(
            f"groups is {groups}, which leaves too few samples without a group for k = {k}; use fewer groups."
        )
    return torch.stack([torch.cat(some, dim=1).kthvalue(k, dim=1).values for some in replicates], dim=1)


def _exclude_self(squares: Tensor, rows: slice, columns: slice) -> None:
    """Set the distance of each row to itself to infinity."""
    first, last = max(rows.start, columns.start), min(rows.stop, columns.stop)
    index = torch.arange(first, max(first, last), device=squares.device)
    squares[index - rows.start, index - columns.start] = torch.inf


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return squared Euclidean distances ``(A, B)``; those of equal vectors are 0 despite rounding."""
    scale = a.square().sum(dim=1, keepdim=True) + b.square().sum(dim=1)
    squares = scale - 2 * (a @ b.T)
    return torch.where(squares <= 1e-13 * scale, 0.0, squares)


def _mean(features: Features, device: str | torch.device) -> Tensor:
    """Return the mean vector; distances lose the fewest digits around it."""
    total = torch.zeros(features.shape[1], dtype=torch.float64, device=device)
    for rows in pieces(0, len(features)):
        total += read_rows(features, rows, device).sum(dim=0)
    return total / len(features)
