"""The small Fashion-MNIST classifier whose features give the demo's Frechet and perceptual distances.

Frechet distances in these features are not FID scores: they compare only with one another, so report them
with the extractor's name.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FeatureNetwork"]


class FeatureNetwork(nn.Module):
    """Six convolutions with group norm and SiLU, the mean over positions, and a linear classifier.

    The first convolution has the full resolution, so that pixel noise reaches the features. SiLU makes the
    distances differentiable everywhere; group norms make samples independent of their batch.

    Examples
    --------
    >>> import torch
    >>> features = FeatureNetwork().feature_maps(torch.zeros(2, 1, 32, 32))
    >>> [tuple(feature.shape[1:]) for feature in features]
    [(16, 32, 32), (32, 16, 16), (64, 8, 8), (64, 4, 4)]
    """

    name = "fashion-cnn-64"

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            [
                _convolution(1, 16, stride=1),
                nn.Sequential(*_convolution(16, 32, stride=2), *_convolution(32, 32, stride=1)),
                nn.Sequential(*_convolution(32, 64, stride=2), *_convolution(64, 64, stride=1)),
                _convolution(64, 64, stride=2),
            ]
        )
        self.classifier = nn.Linear(64, 10)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Return the output of every stage for images (B, 1, 32, 32) in [-1, 1], from fine to coarse."""
        maps = [images]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]

    def forward(self, images: Tensor) -> Tensor:
        """Return the features (B, 64) of images (B, 1, 32, 32) in [-1, 1]."""
        return self.feature_maps(images)[-1].mean(dim=(2, 3))

    def logits(self, images: Tensor, dropout: float = 0.0) -> Tensor:
        """Return class scores (B, 10); `dropout` of the features is for training."""
        scores: Tensor = self.classifier(F.dropout(self(images), dropout, training=dropout > 0))
        return scores


def _convolution(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Return convolution, group norm, SiLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1),
        nn.GroupNorm(outputs // 8, outputs),
        nn.SiLU(),
    )
