"""Distances between a student's samples and the teacher's, as scalar losses.

Every loss is a mean over everything it compares, so its value does not depend on batch or image size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def l1_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference, the paper's loss on latents.

    Examples
    --------
    >>> l1_loss(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0])).item()
    1.0
    """
    return (prediction - target).abs().mean()


def l2_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference.

    Examples
    --------
    >>> l2_loss(torch.tensor([0.0, 3.0]), torch.tensor([1.0, 1.0])).item()
    2.5
    """
    return (prediction - target).square().mean()


def huber_loss(prediction: Tensor, target: Tensor, delta: float = 0.1) -> Tensor:
    """Mean pseudo-Huber distance ``sqrt(r^2 + delta^2) - delta``: L2 near zero, L1 far from it.

    Parameters
    ----------
    prediction, target : Tensor
        Of one shape.
    delta : float
        Where the two regimes meet, in the units of the samples; greater than 0.

    Examples
    --------
    >>> round(huber_loss(torch.tensor([0.3]), torch.tensor([0.0]), delta=0.4).item(), 6)
    0.1
    """
    return ((prediction - target).square() + delta * delta).sqrt().mean() - delta


class PerceptualLoss:
    """Distance of two image batches in the feature maps of a fixed network.

    At each layer the channel vector of every position is scaled to unit length, and the squared distances
    are averaged over positions and layers (the construction of LPIPS, arXiv 1801.03924, with equal weights
    instead of weights fitted to human judgments, so its values are not LPIPS values).

    Parameters
    ----------
    feature_maps : callable
        Maps images ``(B, C, H, W)`` to a sequence of tensors ``(B, F_l, H_l, W_l)``; must be differentiable.
    pixel_weight : float
        Weight of an additional L1 term on the pixels.

    Examples
    --------
    >>> loss = PerceptualLoss(lambda images: [images])
    >>> x = torch.randn(2, 3, 4, 4)
    >>> loss(x, x).item()
    0.0
    """

    def __init__(self, feature_maps: Callable[[Tensor], Sequence[Tensor]], pixel_weight: float = 0.0) -> None:
        self.feature_maps = feature_maps
        self.pixel_weight = pixel_weight

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the scalar distance; gradients reach `prediction` only."""
        with torch.no_grad():
            wanted = [_unit_channels(feature) for feature in self.feature_maps(target)]
        found = [_unit_channels(feature) for feature in self.feature_maps(prediction)]
        layers = [(a - b).square().sum(dim=1).mean() for a, b in zip(found, wanted, strict=True)]
        total = torch.stack(layers).mean()
        if self.pixel_weight:
            total = total + self.pixel_weight * l1_loss(prediction, target)
        return total


def _unit_channels(feature: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Scale the channel vector at each position to unit length; a zero vector stays zero."""
    return feature / (feature.square().sum(dim=1, keepdim=True) + epsilon**2).sqrt()


LOSSES: dict[str, Loss] = {"l1": l1_loss, "l2": l2_loss, "huber": huber_loss}


def get_loss(loss: str | Loss) -> Loss:
    """Return a loss by its name ("l1", "l2", "huber"), or a callable as it is.

    Examples
    --------
    >>> get_loss("l1") is l1_loss
    True
    """
    if callable(loss):
        return loss
    if loss not in LOSSES:
        raise ValueError(f"unknown loss {loss!r}: use one of {', '.join(LOSSES)} or pass a callable")
    return LOSSES[loss]
