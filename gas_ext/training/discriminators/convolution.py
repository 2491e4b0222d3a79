"""A small discriminator for signals, images and videos."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from gas_ext.training.discriminators.base import Discriminator, register_discriminator

_SLOPE = 0.2  # of leaky ReLU
_SHORT = 4  # axes are halved until none is longer
_CONVOLUTIONS: tuple[Callable[..., nn.Conv1d | nn.Conv2d | nn.Conv3d], ...] = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
)


@register_discriminator("convolution")
class ConvolutionDiscriminator(Discriminator):
    """Convolutions that halve every axis down to four positions, and a linear layer.

    There is no normalization, so samples are independent, as the gradient penalties require. For 64x64 images
    and the default width it has 1.7 million parameters.

    Parameters
    ----------
    sample_shape : sequence of int
        (channels, *sizes) with one, two or three axes.
    width : int
        Channels at full resolution; they double at every level.
    max_width : int
        Largest number of channels.
    num_classes : int
        Number of class labels; 0 for none.

    Raises
    ------
    ValueError
        If there are no axes, or more than three.

    Examples
    --------
    >>> import torch
    >>> video = ConvolutionDiscriminator((3, 6, 16, 24), width=4)
    >>> video(torch.zeros(2, 3, 6, 16, 24)).shape
    torch.Size([2])
    >>> [tuple(layer.stride) for layer in video.layers]
    [(1, 1, 1), (2, 2, 2), (1, 2, 2), (1, 1, 2)]
    """

    def __init__(
        self, sample_shape: Sequence[int], *, width: int = 32, max_width: int = 256, num_classes: int = 0
    ) -> None:
        channels, *sizes = sample_shape
        if not 1 <= len(sizes) <= len(_CONVOLUTIONS):
            raise ValueError(
                f"sample_shape is {tuple(sample_shape)}, but 'convolution' needs channels and one to three "
                "axes; register a custom discriminator for other data."
            )
        if not 1 <= width <= max_width:
            raise ValueError(f"width is {width}, but must be from 1 to max_width, which is {max_width}.")
        features = max_width if num_classes else 1
        super().__init__(
            sample_shape,
            {"width": width, "max_width": max_width, "num_classes": num_classes},
            num_classes=num_classes,
            embedding_dim=features,
        )
        convolution = _CONVOLUTIONS[len(sizes) - 1]
        layers = [convolution(channels, width, 3, padding=1)]
        while max(sizes) > _SHORT:
            halved = [size > _SHORT for size in sizes]
            kernel = tuple(4 if half else 3 for half in halved)
            stride = tuple(2 if half else 1 for half in halved)
            wider = min(2 * width, max_width)
            layers.append(convolution(width, wider, kernel, stride=stride, padding=1))
            sizes = [size // 2 if half else size for size, half in zip(sizes, halved, strict=True)]
            width = wider
        self.head = nn.Linear(width * math.prod(sizes), features, bias=False)
        for layer in layers:
            assert layer.bias is not None
            nn.init.kaiming_normal_(layer.weight, a=_SLOPE)
            nn.init.zeros_(layer.bias)
        self.layers = nn.ModuleList(layers)
        nn.init.normal_(self.head.weight, std=1.0 / math.sqrt(self.head.in_features))

    def features(self, samples: Tensor) -> Tensor:
        """Return (B, E)."""
        x = samples
        for layer in self.layers:
            x = F.leaky_relu(layer(x), _SLOPE)
        features: Tensor = self.head(x.flatten(1))
        return features
