"""Perceptual distances of samples to the teacher's samples from the same noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from gas_ext._utils.distances import check_pair
from gas_ext.training.losses import PerceptualLoss


def perceptual_distances(
    samples: Tensor, reference: Tensor, feature_maps: Callable[[Tensor], Sequence[Tensor]]
) -> Tensor:
    """Return the `gas_ext.training.losses.PerceptualLoss` of each pair of images, ``(B,)`` in float64.

    Parameters
    ----------
    samples, reference : Tensor
        Images ``(B, C, H, W)`` in [-1, 1].
    feature_maps : callable
        Maps images to tensors ``(B, F_l, H_l, W_l)``, such as a `FeatureExtractor`'s `feature_maps`.

    Examples
    --------
    >>> import torch
    >>> x = torch.ones(1, 3, 2, 2)
    >>> perceptual_distances(x, -x, lambda images: [images]).round(decimals=5)
    tensor([4.], dtype=torch.float64)
    """
    check_pair(samples, reference)
    return PerceptualLoss(feature_maps).per_sample(samples, reference).double()
