"""Kernel distance (KID) of two sets of feature vectors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

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


def kernel_distance(features: Features, reference: Features, *, device: str | torch.device = "cpu") -> float:
    """Return the unbiased squared maximum mean discrepancy, kernel ``(x . y / F + 1)^3`` (arXiv 1801.01401).

    With Inception features this is the KID. It is usually published as a mean over random subsets of 1000;
    this is the mean over all pairs: same expectation, least variance, no random numbers. It may be negative.
    Memory holds one tile of the table of pairs at a time, in float64.

    Parameters
    ----------
    features, reference : Tensor or ndarray
        Shapes ``(N, F)`` and ``(M, F)``, at least 2 rows each; may be memory-mapped.
    device : device
        Where the products are computed; default "cpu".

    Raises
    ------
    ValueError
        If shapes do not fit or a value is not finite.

    Examples
    --------
    >>> kernel_distance(torch.tensor([[0.0], [0.0]]), torch.tensor([[1.0], [1.0]]))
    7.0
    """
    distances = kernel_distances(features, reference, 0, device)
    check_finite(features, reference)
    return float(distances[0])


def kernel_distances(
    features: Features,
    reference: Features,
    groups: int = 0,
    device: str | torch.device = "cpu",
    paired: bool = False,
) -> Tensor:
    """Return the kernel distance of all samples, then without each group: ``(1 + groups,)`` in float64.

    Where row i of both was made from the same noise (`paired`), their kernel is larger than that of
    independent draws, and the distance would be negative even for equal distributions. Leaving out the
    pairs of equal rows also in the product of both makes it unbiased again (the U-statistic of Gretton et
    al. 2012, lemma 6). Groups are then left out on both sides.
    """
    check_features(reference, 2)
    check_features(features, 2, reference.shape[1])
    own = _Grouped(features, group_slices(len(features), max(groups, 1)), replicate_weights(groups))
    if paired:
        other = own._replace(features=reference)
    else:
        other = _Grouped(reference, [slice(0, len(reference))], torch.ones_like(own.weights[:, :1]))

    def mean(a: _Grouped, b: _Grouped, same_rows: bool = True) -> Tensor:
        """Average the kernel over all pairs, or over pairs of different rows if the rows correspond."""
        total = ((a.weights @ _pair_sums(a, b, device)) * b.weights).sum(dim=1)
        count = replicate_sizes(a.weights, a.parts)
        if not same_rows:
            return total / (count * replicate_sizes(b.weights, b.parts))
        diagonal = torch.stack([_diagonal_sum(a.features, b.features, part, device) for part in a.parts])
        return (total - a.weights @ diagonal) / (count * (count - 1))

    return mean(own, own) + mean(other, other) - 2 * mean(own, other, paired)


class _Grouped(NamedTuple):
    """Feature vectors in groups, and which groups enter each replicate."""

    features: Features
    parts: list[slice]
    weights: Tensor


def _kernel(products: Tensor, size: int) -> Tensor:
    return (products / size + 1) ** 3


def _pair_sums(a: _Grouped, b: _Grouped, device: str | torch.device) -> Tensor:
    """Sum the kernel over all pairs of each group of `a` with each of `b`; the sums are on the CPU."""
    size = a.features.shape[1]
    edge = int(TILE**0.5)
    sums = torch.zeros(len(a.parts), len(b.parts), dtype=torch.float64)
    for j, group_b in enumerate(b.parts):
        for columns in pieces(group_b.start, group_b.stop, edge):
            right = read_rows(b.features, columns, device).T
            for i, group_a in enumerate(a.parts):
                for rows in pieces(group_a.start, group_a.stop, edge):
                    sums[i, j] += _kernel(read_rows(a.features, rows, device) @ right, size).sum().cpu()
    return sums


def _diagonal_sum(a: Features, b: Features, part: slice, device: str | torch.device) -> Tensor:
    """Sum the kernel over the pairs of equal rows."""
    total = torch.zeros((), dtype=torch.float64)
    for rows in pieces(part.start, part.stop):
        products = (read_rows(a, rows, device) * read_rows(b, rows, device)).sum(dim=1)
        total += _kernel(products, a.shape[1]).sum().cpu()
    return total
