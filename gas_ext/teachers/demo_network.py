"""A small class-conditional denoiser for gray images, designed for cheap evaluation on a CPU.

The image is folded 2x2 into channels first (space to depth), so that all convolutions run at half the
resolution or less. Noise level and class enter every block as a per-channel scale and shift. All norms are
group norms: each sample's output is independent of the rest of the batch.

The preconditioning is that of Karras et al. 2022 (EDM, Table 1): the network sees unit-variance inputs at
every noise level and its output is weighted so that the training target has unit variance as well.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["DemoNetwork", "DemoNetworkConfig"]


@dataclass(frozen=True)
class DemoNetworkConfig:
    """The shape of a `DemoNetwork`; one entry per resolution, from half the image size downwards.

    The image size is a multiple of ``2 * 2 ** (len(channels) - 1)``.
    """

    image_channels: int = 1
    image_size: int = 32
    num_classes: int = 10  # the label num_classes means "no label"
    channels: tuple[int, ...] = (64, 96, 128)
    blocks: tuple[int, ...] = (1, 1, 1)  # residual blocks on the way down; there is one more on the way up
    attention: tuple[bool, ...] = (False, True, False)  # once on the way down and once on the way up
    embedding_size: int = 256  # of noise level and class
    sigma_data: float = 0.5  # standard deviation of the data

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary, the inverse of `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, entries: dict[str, Any]) -> DemoNetworkConfig:
        """Rebuild a configuration from `to_dict`'s dictionary, lists for tuples allowed."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entries.items()}
        return cls(**fields)


def _groups(channels: int) -> int:
    """Return the number of norm groups: 16 channels a group, at least one group."""
    return max(1, channels // 16)


def _zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """Zero a layer's parameters: its block starts as the identity."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions; the embedding scales and shifts the second norm's output."""

    def __init__(self, channels: int, embedding_size: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(_groups(channels), channels)
        self.conv_in = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulation = nn.Linear(embedding_size, 2 * channels)
        self.norm_out = nn.GroupNorm(_groups(channels), channels)
        self.conv_out = _zeroed(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv_in(F.silu(self.norm_in(x)))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.norm_out(h) * (1 + scale) + shift
        residual: Tensor = self.conv_out(F.silu(h))
        return x + residual


class _Attention(nn.Module):
    """Self-attention over all positions, heads of 32 channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = channels // 32
        self.norm = nn.GroupNorm(_groups(channels), channels)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1)
        self.project = _zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.query_key_value(self.norm(x))
        qkv = qkv.reshape(batch, 3, self.heads, 32, height * width).transpose(-1, -2)
        h = F.scaled_dot_product_attention(qkv[:, 0], qkv[:, 1], qkv[:, 2])
        residual: Tensor = self.project(h.transpose(-1, -2).reshape(batch, channels, height, width))
        return x + residual


class _Stage(nn.Module):
    """Residual blocks at one resolution, with optional attention after the first."""

    def __init__(self, channels: int, blocks: int, attention: bool, embedding_size: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_ResidualBlock(channels, embedding_size) for _ in range(blocks))
        self.attention = _Attention(channels) if attention else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for index, block in enumerate(self.blocks):
            x = block(x, embedding)
            if index == 0:
                x = self.attention(x)
        return x


class _Trunk(nn.Module):
    """The U-shaped network F of the preconditioned denoiser."""

    frequencies: Tensor

    def __init__(self, config: DemoNetworkConfig) -> None:
        super().__init__()
        channels, width = config.channels, config.embedding_size
        folded = 4 * config.image_channels
        # Up to 4 radians per e-fold of sigma: solvers need a field that varies smoothly with time.
        frequencies = torch.exp(torch.linspace(math.log(0.25), math.log(4.0), width // 8))
        self.register_buffer("frequencies", frequencies)
        self.noise_embedding = nn.Linear(width // 4, width)
        self.class_embedding = nn.Embedding(config.num_classes + 1, width)
        self.embedding = nn.Linear(width, width)
        self.stem = nn.Conv2d(folded, channels[0], 3, padding=1)
        stages = list(zip(channels, config.blocks, config.attention, strict=True))
        self.down = nn.ModuleList(_Stage(c, b, a, width) for c, b, a in stages)
        self.shrink = nn.ModuleList(nn.Conv2d(4 * fine, coarse, 1) for fine, coarse in pairwise(channels))
        self.up = nn.ModuleList(_Stage(c, b + 1, a, width) for c, b, a in stages[:-1])
        self.grow = nn.ModuleList(nn.Conv2d(coarse, 4 * fine, 1) for fine, coarse in pairwise(channels))
        self.merge = nn.ModuleList(nn.Conv2d(2 * c, c, 1) for c in channels[:-1])
        self.norm = nn.GroupNorm(_groups(channels[0]), channels[0])
        self.head = _zeroed(nn.Conv2d(channels[0], folded, 3, padding=1))

    def forward(self, x: Tensor, log_sigma: Tensor, labels: Tensor) -> Tensor:
        angles = log_sigma[:, None] * self.frequencies
        waves = torch.cat((angles.cos(), angles.sin()), dim=1)
        embedding = F.silu(self.noise_embedding(waves) + self.class_embedding(labels))
        embedding = F.silu(self.embedding(embedding))
        x = self.stem(F.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last))
        skips = []
        for level, stage in enumerate(self.down):
            x = stage(x, embedding)
            if level < len(self.shrink):
                skips.append(x)
                x = self.shrink[level](F.pixel_unshuffle(x, 2))
        for level in reversed(range(len(self.up))):
            x = F.pixel_shuffle(self.grow[level](x), 2)
            x = self.merge[level](torch.cat((x, skips[level]), dim=1))
            x = self.up[level](x, embedding)
        return F.pixel_shuffle(self.head(F.silu(self.norm(x))), 2)


class DemoNetwork(nn.Module):
    """Class-conditional denoiser D(y, sigma, label) with EDM preconditioning.

    D(y, sigma) = c_skip y + c_out F(c_in y, log sigma, label), where with s = sigma_data
    c_skip = s^2 / (s^2 + sigma^2), c_out = sigma s / sqrt(s^2 + sigma^2), c_in = 1 / sqrt(s^2 + sigma^2)
    (Karras et al. 2022, Table 1). At initialization F = 0.

    Examples
    --------
    >>> denoiser = DemoNetwork(DemoNetworkConfig(channels=(32, 32), blocks=(1, 1), attention=(False, False)))
    >>> y = torch.zeros(2, 1, 32, 32)
    >>> denoiser(y, torch.tensor([0.1, 80.0]), torch.tensor([3, 10])).shape
    torch.Size([2, 1, 32, 32])
    """

    def __init__(self, config: DemoNetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = _Trunk(config).to(memory_format=torch.channels_last)

    def forward(self, y: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        """Return the expected clean image, of the shape and dtype of y.

        Parameters
        ----------
        y : Tensor
            Clean image plus sigma times unit Gaussian noise, shape (B, C, H, W).
        sigma : Tensor
            Noise levels above 0, shape (B,); with float64 the coefficients are exact before the cast.
        labels : Tensor
            int64 labels in [0, num_classes], shape (B,); num_classes means "no label".
        """
        data = self.config.sigma_data
        total = (sigma.square() + data**2).sqrt()
        c_in = (1 / total).to(y.dtype)[:, None, None, None]
        c_skip = (data / total).square().to(y.dtype)[:, None, None, None]
        c_out = (data * sigma / total).to(y.dtype)[:, None, None, None]
        output: Tensor = self.trunk(c_in * y, sigma.log().to(y.dtype), labels)
        return c_skip * y + c_out * output
