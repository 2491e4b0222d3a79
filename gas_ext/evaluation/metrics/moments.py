"""Means and covariances of feature vectors, and the Frechet distance of two of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from gas_ext._utils.checks import check_dense
from gas_ext.evaluation.metrics.arrays import Features, check_features, pieces, read_rows


class Statistics(NamedTuple):
    """Mean (F,) and unbiased covariance (F, F) of `size` feature vectors, in float64."""

    mean: Tensor
    covariance: Tensor
    size: int


class StreamingStatistics:
    """Mean and covariance of feature vectors that arrive in batches, in float64.

    Batches are merged by the pairwise formula of Chan, Golub and LeVeque (1979). Unlike sums of squares, it
    does not cancel when the mean is much larger than the spread.

    Examples
    --------
    >>> stream = StreamingStatistics()
    >>> stream.update(torch.tensor([[0.0], [2.0]]))
    >>> stream.update(torch.tensor([[4.0]]))
    >>> mean, covariance, count = stream.result()
    >>> mean.item(), covariance.item(), count
    (2.0, 4.0, 3)
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean = torch.zeros(0, dtype=torch.float64)
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)

    def update(self, features: Tensor) -> None:
        """Add a batch of feature vectors of shape ``(B, F)``; an empty batch changes nothing."""
        check_dense("features", features)
        if features.ndim != 2:
            shape = tuple(features.shape)
            raise ValueError(f"The features have shape {shape}, but must have shape (batch, features).")
        batch = features.detach().to("cpu", torch.float64)
        if len(batch) == 0:
            return
        mean = batch.mean(dim=0)
        centered = batch - mean
        self._add(len(batch), mean, centered.T @ centered)

    def merge(self, statistics: Statistics) -> None:
        """Add the statistics of another stream, such as that of another process."""
        self._add(statistics.size, statistics.mean, statistics.covariance * (statistics.size - 1))

    def _add(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        """Add vectors given their number, mean, and scatter matrix about it."""
        if self.count == 0:
            self.count, self._mean, self._scatter = count, mean, scatter
            return
        if mean.shape != self._mean.shape:
            raise ValueError(
                f"The features have {len(mean)} columns, but earlier batches had {len(self._mean)}; use one "
                "extractor for all."
            )
        total = self.count + count
        shift = mean - self._mean
        self._scatter = self._scatter + scatter + torch.outer(shift, shift) * (self.count * count / total)
        self._mean = self._mean + shift * (count / total)
        self.count = total

    def result(self) -> Statistics:
        """Return the statistics of all batches; raises ValueError if they hold fewer than two vectors."""
        if self.count < 2:
            raise ValueError(f"There are {self.count} feature vectors; add at least 2.")
        return Statistics(self._mean.clone(), self._scatter / (self.count - 1), self.count)


def feature_statistics(features: Features) -> Statistics:
    """Return mean and unbiased covariance of feature vectors of shape ``(N, F)``, N >= 2, in float64.

    A memory-mapped array is read in slices.

    Examples
    --------
    >>> feature_statistics(torch.tensor([[1.0], [3.0]])).mean.item()
    2.0
    """
    check_features(features)
    stream = StreamingStatistics()
    for rows in pieces(0, len(features)):
        stream.update(read_rows(features, rows))
    return stream.result()


def merge_statistics(parts: Iterable[Statistics]) -> Statistics:
    """Return the statistics of all vectors of several parts; their order changes results by rounding only.

    Examples
    --------
    >>> halves = [feature_statistics(torch.tensor([[0.0], [2.0]])), feature_statistics(torch.ones(2, 1))]
    >>> merge_statistics(halves).covariance.item()
    0.6666666666666666
    """
    stream = StreamingStatistics()
    for part in parts:
        stream.merge(part)
    return stream.result()


def remove_statistics(whole: Statistics, part: Statistics) -> Statistics:
    """Return the statistics of the vectors of `whole` that are not in `part`, at least 2; undoes a merge.

    Examples
    --------
    >>> features = torch.tensor([[0.0], [2.0], [7.0], [8.0]])
    >>> rest = remove_statistics(feature_statistics(features), feature_statistics(features[2:]))
    >>> rest.mean.item(), rest.covariance.item()
    (1.0, 2.0)
    """
    count = whole.size - part.size
    if count < 2:
        raise ValueError(f"{count} feature vectors would remain; remove fewer, so that at least 2 remain.")
    mean = whole.mean + (whole.mean - part.mean) * (part.size / count)
    shift = part.mean - mean
    scatter = whole.covariance * (whole.size - 1) - part.covariance * (part.size - 1)
    scatter = scatter - torch.outer(shift, shift) * (count * part.size / whole.size)
    return Statistics(mean, scatter / (count - 1), count)


def frechet_distance(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    """Return the squared Frechet (2-Wasserstein) distance of two Gaussians, at least 0.

    ``|mu_a - mu_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^(1/2))`` (Dowson and Landau, 1982). The last trace
    is computed in float64 as the sum of the singular values of ``S_a^(1/2) S_b^(1/2)``, which is real and
    non-negative also for rank-deficient covariances, where a matrix square root may fail or become complex.
    Only with Inception features is it the FID.

    Parameters
    ----------
    mean_a, mean_b : Tensor
        Shape ``(F,)``.
    covariance_a, covariance_b : Tensor
        Shape ``(F, F)``, symmetric positive semidefinite.

    Raises
    ------
    ValueError
        If shapes do not agree or a value is not finite.

    Examples
    --------
    >>> one = torch.eye(1)
    >>> frechet_distance(torch.tensor([0.0]), one, torch.tensor([3.0]), 4 * one)
    10.0
    """
    for tensor in (mean_a, covariance_a, mean_b, covariance_b):
        check_dense("A mean or covariance", tensor)
    a, s_a = mean_a.to("cpu", torch.float64), covariance_a.to("cpu", torch.float64)
    b, s_b = mean_b.to("cpu", torch.float64), covariance_b.to("cpu", torch.float64)
    size = a.numel()
    if a.shape != (size,) or b.shape != (size,) or s_a.shape != (size, size) or s_b.shape != (size, size):
        shapes = [tuple(tensor.shape) for tensor in (a, s_a, b, s_b)]
        raise ValueError(
            f"The means and covariances have shapes {shapes}, but must have shapes (F,), (F, F), (F,), "
            "(F, F); use one extractor for both."
        )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in (a, s_a, b, s_b)):
        raise ValueError("The means or covariances hold values that are not finite; check the samples.")
    cross = torch.linalg.svdvals(_psd_root(s_a) @ _psd_root(s_b)).sum()
    distance = (a - b).square().sum() + s_a.trace() + s_b.trace() - 2 * cross
    return max(float(distance), 0.0)


def _psd_root(matrix: Tensor) -> Tensor:
    """Return the symmetric square root of a positive semidefinite matrix; rounding below zero is clamped."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return root
