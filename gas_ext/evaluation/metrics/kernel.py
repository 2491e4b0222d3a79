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
    kept_counts,
    kept_groups,
    pieces,
    read_rows,
)


def kernel_distance(features: Features, reference: Features, *, device: str | torch.device = "cpu") -> float:
    """Unbiased squared maximum mean discrepancy with the kernel ``(x . y / F + 1)^3`` (arXiv 1801.01401).

    With features of an Inception network this is the KID. It is usually published as a mean over random
    subsets of 1000; this is the mean over all pairs: the same expectation, the least variance, no random
    numbers. It may be below 0. Only tiles of the table of pairs are held at a time, in float64.

    Parameters
    ----------
    features, reference : Tensor or ndarray
        Shapes ``(N, F)`` and ``(M, F)``, at least 2 rows each; may be mapped from disk.
    device : device
        Where the products are computed.

    Raises
    ------
    ValueError
        If shapes do not fit, or a number is not finite.

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
    """Return the kernel distance of all samples, then those without each group, ``(1 + groups,)`` float64.

    Where row i of both was made from the same noise (`paired`), their kernel is larger than that of
    independent draws, and the distance would fall below 0 even for the same distribution. Leaving out the
    pairs of one row in the product of both, too, is unbiased again (the U-statistic of Gretton et al. 2012,
    lemma 6). Groups are then left out of both sides.

    Raises
    ------
    ValueError
        If shapes do not fit, or there are fewer than 2 rows.

    Examples
    --------
    >>> x = torch.tensor([[0.0], [1.0], [2.0]])
    >>> kernel_distances(x, x, paired=True).item()
    0.0
    """
    check_features(reference, 2)
    check_features(features, 2, reference.shape[1])
    if paired and features.shape != reference.shape:
        raise ValueError(f"{len(features)} samples and {len(reference)} references are not paired")
    own = _Grouped(features, group_slices(len(features), max(groups, 1)), kept_groups(groups))
    if paired:
        theirs = own._replace(features=reference)
    else:
        theirs = _Grouped(reference, [slice(0, len(reference))], torch.ones_like(own.kept[:, :1]))

    def mean(a: _Grouped, b: _Grouped, same_rows: bool = True) -> Tensor:
        """Mean kernel of all pairs; where the rows of both belong together, of those of different rows."""
        total = ((a.kept @ _pair_sums(a, b, device)) * b.kept).sum(dim=1)
        count = kept_counts(a.kept, a.parts)
        if not same_rows:
            return total / (count * kept_counts(b.kept, b.parts))
        diagonal = torch.stack([_diagonal_sum(a.features, b.features, part, device) for part in a.parts])
        return (total - a.kept @ diagonal) / (count * (count - 1))

    return mean(own, own) + mean(theirs, theirs) - 2 * mean(own, theirs, paired)


class _Grouped(NamedTuple):
    """Feature vectors in groups, and which groups each replicate keeps."""

    features: Features
    parts: list[slice]
    kept: Tensor


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
    """Sum the kernel of the vectors of one row."""
    total = torch.zeros((), dtype=torch.float64)
    for rows in pieces(part.start, part.stop, 4096):
        products = (read_rows(a, rows, device) * read_rows(b, rows, device)).sum(dim=1)
        total += _kernel(products, a.shape[1]).sum().cpu()
    return total
