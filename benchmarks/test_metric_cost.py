"""Frechet and kernel distances of given features, against clean-fid and torchmetrics if installed."""

from __future__ import annotations

import pytest
import torch
from cases import generator, thorough

from gas_ext.evaluation.metrics import feature_statistics, frechet_distance, kernel_distance

SHAPES = [(1000, 64), thorough(3000, 256)]


def features(count, width):
    source = generator()
    first = torch.randn(count, width, generator=source)
    return first, 1.1 * torch.randn(count, width, generator=source) + 0.1


def clean_fid_frechet(a, b):
    """Means and covariances by numpy, the distance by clean-fid; None if it is not installed."""
    try:
        from cleanfid.fid import frechet_distance as distance
    except ImportError:
        return None
    import numpy as np

    a, b = a.double().numpy(), b.double().numpy()
    return lambda: distance(a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False))


def torchmetrics_frechet(a, b):
    """The distance that the metric of torchmetrics computes."""
    try:
        from torchmetrics.image.fid import _compute_fid as distance
    except ImportError:
        return None

    def call():
        moments = [(x.mean(0), torch.cov(x.T)) for x in (a.double(), b.double())]
        return distance(*moments[0], *moments[1])

    return call


def torchmetrics_kernel(a, b):
    try:
        from torchmetrics.image.kid import poly_mmd
    except ImportError:
        return None
    return lambda: poly_mmd(a.double(), b.double())


@pytest.mark.parametrize(("count", "width"), SHAPES)
def test_frechet(against, count, width):
    a, b = features(count, width)

    def call():
        first, second = feature_statistics(a), feature_statistics(b)
        return frechet_distance(first.mean, first.covariance, second.mean, second.covariance)

    baselines = {"clean-fid": clean_fid_frechet(a, b), "torchmetrics": torchmetrics_frechet(a, b)}
    for baseline in filter(None, baselines.values()):  # both compute the same number
        assert float(baseline()) == pytest.approx(call(), rel=1e-3)
    against(call, baselines, subject="metrics", what="Frechet distance", samples=count, features=width)


@pytest.mark.parametrize(("count", "width"), SHAPES)
def test_kernel(against, count, width):
    a, b = features(count, width)
    baseline = torchmetrics_kernel(a, b)
    if baseline is not None:
        assert float(baseline()) == pytest.approx(kernel_distance(a, b), rel=1e-3)
    against(
        lambda: kernel_distance(a, b),
        {"torchmetrics": baseline},
        subject="metrics",
        what="kernel distance",
        samples=count,
        features=width,
    )
