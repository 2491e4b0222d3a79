"""Kernel distance (KID) of two sets of feature vectors."""

from __future__ import annotations

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
    features: Features, reference: Features, groups: int = 0, device: str | torch.device = "cpu"
) -> Tensor:
    """Return the kernel distance of all samples, then those without each group, ``(1 + groups,)`` float64."""
    check_features(reference, 2)
    check_features(features, 2, reference.shape[1])
    own_groups = group_slices(len(features), max(groups, 1))
    everything = [slice(0, len(reference))]
    within = _pair_sums(features, features, own_groups, own_groups, device)
    across = _pair_sums(features, reference, own_groups, everything, device)[:, 0]
    sizes = torch.tensor([part.stop - part.start for part in own_groups], dtype=torch.float64)
    diagonal = torch.stack([_diagonal_sum(features, part, device) for part in own_groups])
    reference_mean = _mean_without_diagonal(
        _pair_sums(reference, reference, everything, everything, device)[0, 0],
        _diagonal_sum(reference, everything[0], device),
        torch.tensor(float(len(reference)), dtype=torch.float64),
    )
    kept = torch.ones(1 + groups, len(own_groups), dtype=torch.float64)
    for group in range(groups):
        kept[1 + group, group] = 0
    count = kept @ sizes
    own_mean = _mean_without_diagonal(((kept @ within) * kept).sum(dim=1), kept @ diagonal, count)
    return own_mean + reference_mean - 2 * (kept @ across) / (count * len(reference))


def paired_kernel_distances(
    features: Features, reference: Features, groups: int = 0, device: str | torch.device = "cpu"
) -> Tensor:
    """Return the kernel distance of samples and references that come in pairs, ``(1 + groups,)`` float64.

    Where row i of both was made from the same noise, their kernel is larger than that of independent draws,
    and `kernel_distances` falls below 0 even for the same distribution. Leaving out the pairs of one row in
    the product of both, too, is unbiased again (the U-statistic of Gretton et al. 2012, lemma 6). Groups are
    left out of both sides.

    Raises
    ------
    ValueError
        If shapes differ, or there are fewer than 2 rows.

    Examples
    --------
    >>> x = torch.tensor([[0.0], [1.0], [2.0]])
    >>> paired_kernel_distances(x, x).item()
    0.0
    """
    check_features(features, 2, reference.shape[-1])
    if features.shape != reference.shape:
        raise ValueError(f"{len(features)} samples and {len(reference)} references are not paired")
    parts = group_slices(len(features), max(groups, 1))
    kept = torch.ones(1 + groups, len(parts), dtype=torch.float64)
    kept[1:] -= torch.eye(groups, len(parts), dtype=torch.float64)
    count = kept @ torch.tensor([part.stop - part.start for part in parts], dtype=torch.float64)

    def mean(a: Features, b: Features) -> Tensor:
        total = ((kept @ _pair_sums(a, b, parts, parts, device)) * kept).sum(dim=1)
        diagonal = torch.stack([_diagonal_sum(a, part, device, b) for part in parts])
        return _mean_without_diagonal(total, kept @ diagonal, count)

    return mean(features, features) + mean(reference, reference) - 2 * mean(features, reference)


def _mean_without_diagonal(total: Tensor, diagonal: Tensor, count: Tensor) -> Tensor:
    """Mean over the pairs of different members."""
    return (total - diagonal) / (count * (count - 1))


def _kernel(products: Tensor, size: int) -> Tensor:
    return (products / size + 1) ** 3


def _pair_sums(
    a: Features, b: Features, groups_a: list[slice], groups_b: list[slice], device: str | torch.device
) -> Tensor:
    """Sum the kernel over all pairs of each group of `a` with each of `b`; the sums are on the CPU."""
    size = a.shape[1]
    edge = int(TILE**0.5)
    sums = torch.zeros(len(groups_a), len(groups_b), dtype=torch.float64)
    for j, group_b in enumerate(groups_b):
        for columns in pieces(group_b.start, group_b.stop, edge):
            right = read_rows(b, columns, device).T
            for i, group_a in enumerate(groups_a):
                for rows in pieces(group_a.start, group_a.stop, edge):
                    sums[i, j] += _kernel(read_rows(a, rows, device) @ right, size).sum().cpu()
    return sums


def _diagonal_sum(
    features: Features, part: slice, device: str | torch.device, other: Features | None = None
) -> Tensor:
    """Sum of the kernel of every member with itself, or with the one of the same row."""
    total = torch.zeros((), dtype=torch.float64)
    for rows in pieces(part.start, part.stop, 4096):
        own = read_rows(features, rows, device)
        products = (own * (own if other is None else read_rows(other, rows, device))).sum(dim=1)
        total += _kernel(products, features.shape[1]).sum().cpu()
    return total
