"""R3GAN's discriminator (Huang, Gokaslan, Kuleshov and Tompkin 2024, arXiv 2501.05441).

A 1x1 convolution, then stages of residual blocks. Each stage halves the resolution, and the last one weighs
all remaining positions. There is no normalization. A residual block is

    x + W3 a(W2 * a(W1 x + b1) + b2),    a(y) = max(y, y / 5),

with 1x1 convolutions W1 and W3 to and from a wider space, in which W2 is a grouped 3x3 convolution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gas_ext.training.discriminators.base import Discriminator, register_discriminator

_SLOPE = 0.2  # of leaky ReLU
_GAIN = math.sqrt(2.0 / (1.0 + _SLOPE**2))  # keeps the variance through it (He et al. 2015)
_HEAD = 4  # positions along an axis at the end of the published networks
_WIDEST = 768
_GROUP = 8  # channels of a stage per group of its 3x3 convolutions


@dataclass(frozen=True)
class R3GANConfig:
    """The shape of a network; every tuple has one entry per stage, from fine to coarse.

    Parameters
    ----------
    widths : tuple of int
        Channels.
    cardinalities : tuple of int
        Groups of the 3x3 convolutions; each divides expansion times width.
    blocks : tuple of int
        Residual blocks.
    expansion : int
        How many times wider the blocks are inside.
    resampling_filter : tuple of float
        Low-pass filter along one axis before downsampling; an even number of taps of any scale.
        (1, 3, 3, 1) is the published [1, 2, 1] smoothed by [1, 1].
    num_classes : int
        Number of class labels; 0 for none.
    embedding_dim : int
        Size of a label's embedding, 1 for an unconditional network.
    bfloat16_stages : tuple of int
        Stages (from 0) that compute in bfloat16.

    Raises
    ------
    ValueError
        If the entries do not fit each other.

    Examples
    --------
    >>> R3GANConfig(widths=(8, 16), cardinalities=(1, 2), blocks=(2, 2)).expansion
    2
    """

    widths: tuple[int, ...]
    cardinalities: tuple[int, ...]
    blocks: tuple[int, ...]
    expansion: int = 2
    resampling_filter: tuple[float, ...] = (1, 3, 3, 1)
    num_classes: int = 0
    embedding_dim: int = 1
    bfloat16_stages: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check that the entries fit each other; lists, as from JSON, become tuples."""
        for name in ("widths", "cardinalities", "blocks", "resampling_filter", "bfloat16_stages"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        stages = len(self.widths)
        if stages == 0 or not stages == len(self.cardinalities) == len(self.blocks):
            raise ValueError(
                f"widths, cardinalities and blocks have {stages}, {len(self.cardinalities)} and "
                f"{len(self.blocks)} entries, but need one per stage."
            )
        if min(*self.widths, *self.cardinalities, self.expansion) < 1 or min(self.blocks) < 0:
            raise ValueError("widths, cardinalities and expansion must be at least 1, and blocks at least 0.")
        for width, groups in zip(self.widths, self.cardinalities, strict=True):
            if self.expansion * width % groups:
                raise ValueError(
                    f"A stage of width {width} has {self.expansion * width} channels inside its blocks, "
                    f"which {groups} groups do not divide; change cardinalities."
                )
        taps = self.resampling_filter
        if not taps or len(taps) % 2 or sum(taps) == 0:
            raise ValueError(f"resampling_filter is {taps}, but needs an even number of taps, sum not 0.")
        if not set(self.bfloat16_stages) <= set(range(stages)):
            raise ValueError(f"bfloat16_stages is {self.bfloat16_stages}, but stages are 0 to {stages - 1}.")

    @classmethod
    def published(cls, sample_shape: Sequence[int], num_classes: int = 0) -> R3GANConfig:
        """Return the published proportions for images (or latents) of any size.

        Four to seven positions along the shorter side remain at the end. The last four stages have 768
        channels, and each earlier one half of the next. For 3x64x64 and 4x64x64 this is the network that GAS
        trains on latents.

        Examples
        --------
        >>> R3GANConfig.published((4, 64, 64)).widths
        (384, 768, 768, 768, 768)
        """
        _, height, width = _image_shape(sample_shape)
        stages = max(1, (min(height, width) // _HEAD).bit_length())
        widths = tuple(_WIDEST >> max(0, stages - 4 - stage) for stage in range(stages))
        if min(widths) < _GROUP:
            raise ValueError(
                f"sample_shape is {tuple(sample_shape)}, which is too large; pass a config for this size."
            )
        return cls(
            widths=widths,
            cardinalities=tuple(width // _GROUP for width in widths),
            blocks=(2,) * stages,
            num_classes=num_classes,
            embedding_dim=widths[-1] if num_classes else 1,
        )


@register_discriminator("r3gan")
class R3GANDiscriminator(Discriminator):
    """R3GAN's discriminator for images or latents of any size and number of channels.

    Weights are random normal with variance gain^2 / inputs, where the gain compensates leaky ReLU. In the
    blocks W1 and W2 are L^(-1/4) times smaller, with L blocks, and W3 is zero (Fixup, Zhang et al. 2019), so
    that every block starts as the identity. `load_r3gan_snapshot` loads published weights.

    Parameters
    ----------
    sample_shape : sequence of int
        (channels, height, width).
    config : R3GANConfig or mapping of its fields, optional
        The network. Default: ``R3GANConfig.published(sample_shape)``.

    Raises
    ------
    ValueError
        If the sample is not an image, or too small for the number of stages.

    Examples
    --------
    >>> config = R3GANConfig(widths=(8, 16), cardinalities=(1, 2), blocks=(1, 1), bfloat16_stages=(0,))
    >>> discriminator = R3GANDiscriminator((3, 8, 12), config)
    >>> discriminator(torch.randn(2, 3, 8, 12)).dtype
    torch.float32
    """

    def __init__(
        self, sample_shape: Sequence[int], config: R3GANConfig | Mapping[str, Any] | None = None
    ) -> None:
        channels, height, width = _image_shape(sample_shape)
        if isinstance(config, Mapping):
            config = R3GANConfig(**config)
        self.config = config = config or R3GANConfig.published(sample_shape)
        super().__init__(
            sample_shape,
            {"config": asdict(config)},
            num_classes=config.num_classes,
            embedding_dim=config.embedding_dim,
        )
        halvings = len(config.widths) - 1
        size = (height >> halvings, width >> halvings)
        if min(size) < 1:
            raise ValueError(
                f"sample_shape is {self.sample_shape}, but {halvings + 1} stages need at least "
                f"{1 << halvings} positions along each axis; use fewer stages."
            )
        self.extraction = _convolution(channels, config.widths[0], 1)
        self.stages = nn.ModuleList([_Stage(config, index) for index in range(halvings + 1)])
        self.head = _Head(config.widths[-1], size, config.embedding_dim)

    def features(self, samples: Tensor) -> Tensor:
        """Return (B, embedding_dim)."""
        x = _apply(self.extraction, samples.to(self._stage_dtype(0)))
        for index, stage in enumerate(self.stages):
            x = stage(x.to(self._stage_dtype(index)))
        features: Tensor = self.head(x)
        return features

    def _stage_dtype(self, index: int) -> torch.dtype:
        return torch.bfloat16 if index in self.config.bfloat16_stages else self.dtype


class _Stage(nn.Module):
    """Residual blocks and, except in the last stage, downsampling."""

    def __init__(self, config: R3GANConfig, index: int) -> None:
        super().__init__()
        width, groups = config.widths[index], config.cardinalities[index]
        # Fixup for blocks of three layers: L^(-1 / (2 * 3 - 2)).
        gain = _GAIN * max(1, sum(config.blocks)) ** -0.25
        self.blocks = nn.ModuleList(
            [_Block(width, config.expansion * width, groups, gain) for _ in range(config.blocks[index])]
        )
        self.downsample: _Downsample | None = None
        if index + 1 < len(config.widths):
            self.downsample = _Downsample(width, config.widths[index + 1], config.resampling_filter)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, H, W) to (B, next width, H // 2, W // 2), the last stage to its own shape."""
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class _Block(nn.Module):
    """The residual block of the module's formula."""

    def __init__(self, width: int, hidden: int, groups: int, gain: float) -> None:
        super().__init__()
        self.expand = _convolution(width, hidden, 1, gain=gain)
        self.expand_bias = nn.Parameter(torch.zeros(hidden))
        self.spatial = _convolution(hidden, hidden, 3, groups=groups, gain=gain)
        self.spatial_bias = nn.Parameter(torch.zeros(hidden))
        self.project = _convolution(hidden, width, 1, gain=0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, H, W) to itself."""
        y = _activated(_apply(self.expand, x), self.expand_bias)
        y = _activated(_apply(self.spatial, y), self.spatial_bias)
        return x + _apply(self.project, y)


class _Downsample(nn.Module):
    """Low-pass filter, every second position, and a 1x1 convolution if the width changes."""

    kernel: Tensor

    def __init__(self, width: int, next_width: int, taps: Sequence[float]) -> None:
        super().__init__()
        line = torch.tensor(taps, dtype=torch.float64)
        kernel = line[:, None] * line / line.sum() ** 2
        self.register_buffer("kernel", kernel.to(torch.get_default_dtype()))
        self.project = _convolution(width, next_width, 1) if width != next_width else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, H, W) to (B, next width, H // 2, W // 2)."""
        channels, taps = x.shape[1], len(self.kernel)
        kernel = self.kernel.to(x.dtype).expand(channels, 1, taps, taps)
        x = F.conv2d(x, kernel, stride=2, padding=taps // 2 - 1, groups=channels)
        return x if self.project is None else _apply(self.project, x)


class _Head(nn.Module):
    """One weight per position and channel, summed over positions, and a linear layer."""

    def __init__(self, width: int, size: tuple[int, int], features: int) -> None:
        super().__init__()
        self.basis = _convolution(width, width, size, groups=width)
        self.linear = nn.Linear(width, features, bias=False)
        nn.init.normal_(self.linear.weight, std=1.0 / math.sqrt(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, *size) to (B, features)."""
        return F.linear(_apply(self.basis, x).flatten(1), self.linear.weight.to(x.dtype))


def _convolution(
    inputs: int, outputs: int, size: int | tuple[int, int], groups: int = 1, gain: float = 1.0
) -> nn.Conv2d:
    """Return a convolution without bias that keeps the resolution for sizes 1 and 3."""
    padding = 1 if size == 3 else 0
    layer = nn.Conv2d(inputs, outputs, size, padding=padding, groups=groups, bias=False)
    nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.weight[0].numel()))
    return layer


def _apply(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a convolution in the dtype of x."""
    return F.conv2d(x, layer.weight.to(x.dtype), padding=layer.padding, groups=layer.groups)


def _activated(x: Tensor, bias: Tensor) -> Tensor:
    """Add the bias, in its own rounding as the published networks do, and apply leaky ReLU."""
    return F.leaky_relu(x + bias.to(x.dtype)[:, None, None], _SLOPE)


def _image_shape(sample_shape: Sequence[int]) -> tuple[int, int, int]:
    if len(sample_shape) != 3:
        raise ValueError(
            f"sample_shape is {tuple(sample_shape)}, but R3GAN's discriminator needs (channels, height, "
            "width); use 'convolution' for signals and videos."
        )
    channels, height, width = sample_shape
    return channels, height, width
