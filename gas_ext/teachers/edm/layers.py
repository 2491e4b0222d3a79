"""Layers of the EDM networks. Parameter names are those of the published weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PositionalEmbedding(nn.Module):
    """Cosines and sines of a number at frequencies from 1 down to 1/10000 (Vaswani et al. 2017)."""

    def __init__(self, channels: int, endpoint: bool) -> None:
        super().__init__()
        self.pairs, self.endpoint = channels // 2, endpoint

    def forward(self, x: Tensor) -> Tensor:
        """Map (B,) to (B, channels)."""
        indices = torch.arange(self.pairs, dtype=x.dtype, device=x.device)
        phases = x[:, None] * 10000.0 ** (-indices / (self.pairs - self.endpoint))
        return torch.cat([phases.cos(), phases.sin()], dim=1)


class FourierEmbedding(nn.Module):
    """Cosines and sines at random fixed frequencies (Song et al. 2021)."""

    freqs: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 16.0 * torch.randn(channels // 2))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B,) to (B, channels)."""
        phases = x[:, None] * (2.0 * math.pi * self.freqs.to(x.dtype))
        return torch.cat([phases.cos(), phases.sin()], dim=1)


class Conv2d(nn.Module):
    """Convolution that may resample "up" or "down" by two, with the low-pass filter `taps` x `taps`.

    Kernel 0 resamples without convolving. `convolve_first` convolves before filtering, when going down.
    """

    resample_filter: Tensor | None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        resample: str | None = None,
        taps: Sequence[float] = (1, 1),
        convolve_first: bool = False,
    ) -> None:
        super().__init__()
        self.resample, self.convolve_first = resample, convolve_first
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)
        if kernel:
            bound = 1.0 / math.sqrt(inputs * kernel**2)
            self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel).uniform_(-bound, bound))
            self.bias = nn.Parameter(torch.zeros(outputs))
        low_pass = None
        if resample:
            line = torch.tensor(taps, dtype=torch.float32)
            low_pass = (line[:, None] * line / line.sum() ** 2)[None, None]
        self.register_buffer("resample_filter", low_pass)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H', W')."""
        weight = None if self.weight is None else self.weight.to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        reach = 0 if weight is None else weight.shape[-1] // 2
        if self.resample_filter is not None:
            channels = x.shape[1]
            low_pass = self.resample_filter.to(x.dtype)
            edge = (low_pass.shape[-1] - 1) // 2
            if self.resample == "up":  # zeros between the pixels; 4 preserves the mean
                kernel = (4.0 * low_pass).expand(channels, -1, -1, -1)
                x = F.conv_transpose2d(x, kernel, stride=2, padding=edge, groups=channels)
            elif self.convolve_first and weight is not None:
                x = _halved(F.conv2d(x, weight, padding=reach + edge), low_pass, 0)
                return x if bias is None else x + bias[:, None, None]
            else:
                x = _halved(x, low_pass, edge)
        return x if weight is None else F.conv2d(x, weight, bias, padding=reach)


def _halved(x: Tensor, low_pass: Tensor, edge: int) -> Tensor:
    """Filter every channel and take every second pixel."""
    channels = x.shape[1]
    return F.conv2d(x, low_pass.expand(channels, -1, -1, -1), stride=2, padding=edge, groups=channels)


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """Return a group norm of at most 32 groups of at least 4 channels."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps=eps)


def normalized(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """Apply a group norm in the dtype of x."""
    return F.group_norm(x, norm.num_groups, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer in the dtype of x."""
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    return F.linear(x, layer.weight.to(x.dtype), bias)


class UNetBlock(nn.Module):
    """Residual block with optional resampling ("up", "down") and self-attention, in one head by default.

    `skip_scale` multiplies each sum of branch and skip. With `adaptive_scale` the embedding scales and
    shifts the output of the second norm, otherwise it is added before that norm. `project_skip` convolves a
    resampled skip even if the number of channels does not change.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        *,
        attention: bool = False,
        head_channels: int | None = None,
        resample: str | None = None,
        taps: Sequence[float] = (1, 1),
        eps: float = 1e-5,
        skip_scale: float = 1.0,
        adaptive_scale: bool = True,
        project_skip: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = inputs, outputs
        self.heads = outputs // (head_channels or outputs) if attention else 0  # none if too narrow for one
        self.skip_scale, self.adaptive_scale = skip_scale, adaptive_scale
        self.norm0 = group_norm(inputs, eps)
        self.conv0 = Conv2d(inputs, outputs, 3, resample, taps)
        self.affine = nn.Linear(embedding, outputs * (2 if adaptive_scale else 1))
        self.norm1 = group_norm(outputs, eps)
        self.conv1 = Conv2d(outputs, outputs, 3)
        self.skip: Conv2d | None = None
        if inputs != outputs or resample:
            kernel = 1 if inputs != outputs or project_skip else 0
            self.skip = Conv2d(inputs, outputs, kernel, resample, taps)
        if self.heads:
            self.norm2 = group_norm(outputs, eps)
            self.qkv = Conv2d(outputs, 3 * outputs, 1)
            self.proj = Conv2d(outputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map (B, inputs, H, W) and (B, embedding) to (B, outputs, H', W')."""
        skip = x if self.skip is None else self.skip(x)
        x = self.conv0(F.silu(normalized(self.norm0, x)))
        change = linear(self.affine, embedding)[:, :, None, None].to(x.dtype)
        if self.adaptive_scale:
            scale, shift = change.chunk(2, dim=1)
            x = F.silu(shift + normalized(self.norm1, x) * (scale + 1.0))
        else:
            x = F.silu(normalized(self.norm1, x + change))
        x = (self.conv1(x) + skip) * self.skip_scale
        if self.heads:
            x = (self.proj(self._attend(normalized(self.norm2, x))) + x) * self.skip_scale
        return x

    def _attend(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        # The published weights interleave q, k and v channel by channel within each head.
        parts = self.qkv(x).reshape(batch, self.heads, channels // self.heads, 3, height * width)
        q, k, v = (part.transpose(2, 3) for part in parts.unbind(3))
        attended = F.scaled_dot_product_attention(q, k, v)
        return attended.transpose(2, 3).reshape(batch, channels, height, width)
