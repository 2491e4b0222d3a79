"""SongUNet (DDPM++ and NCSN++, Song et al. 2021) and DhariwalUNet (ADM, Dhariwal and Nichol 2021).

Arguments and parameter names are those of the published files, dropout and initialization excepted: these
networks are for inference and for gradients to their input.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gas_ext._utils.records import reason_of
from gas_ext.teachers.edm.layers import (
    Conv2d,
    FourierEmbedding,
    PositionalEmbedding,
    UNetBlock,
    group_norm,
    linear,
    normalized,
)


class SongUNet(nn.Module):
    """DDPM++ ("positional", "standard") or NCSN++ ("fourier", "residual").

    Parameters
    ----------
    img_resolution, in_channels, out_channels : int
        Shape of the images.
    label_dim, augment_dim : int
        Sizes of the class and augmentation vectors; 0 for none.
    model_channels, channel_mult, channel_mult_emb, num_blocks, attn_resolutions
        Width per resolution, width of the embedding, blocks per resolution, and where attention is.
    embedding_type : str
        "positional" or "fourier".
    channel_mult_noise : int
        Width of the noise embedding in `model_channels`.
    encoder_type : str
        "standard", "skip" or "residual".
    decoder_type : str
        "standard" or "skip".
    resample_filter : sequence of float
        Low-pass filter of resampling.

    Raises
    ------
    ValueError
        If a type is none of the above.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[float] = (1, 1),
    ) -> None:
        super().__init__()
        _check("embedding_type", embedding_type, ("positional", "fourier"))
        _check("encoder_type", encoder_type, ("standard", "skip", "residual"))
        _check("decoder_type", decoder_type, ("standard", "skip"))
        self.label_dim = label_dim
        embedding, noise = model_channels * channel_mult_emb, model_channels * channel_mult_noise
        self.map_noise: nn.Module = (
            FourierEmbedding(noise)
            if embedding_type == "fourier"
            else PositionalEmbedding(noise, endpoint=True)
        )
        self.map_label = nn.Linear(label_dim, noise) if label_dim else None
        self.map_augment = nn.Linear(augment_dim, noise, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(noise, embedding)
        self.map_layer1 = nn.Linear(embedding, embedding)

        def block(
            inputs: int, outputs: int, attention: bool = False, resample: str | None = None
        ) -> UNetBlock:
            return UNetBlock(
                inputs,
                outputs,
                embedding,
                heads=int(attention),
                resample=resample,
                taps=resample_filter,
                eps=1e-6,
                skip_scale=math.sqrt(0.5),
                adaptive_scale=False,
                project_skip=True,
            )

        def resampled(inputs: int, outputs: int, kernel: int, resample: str) -> Conv2d:
            return Conv2d(inputs, outputs, kernel, resample, resample_filter, convolve_first=kernel > 1)

        widths = [model_channels * mult for mult in channel_mult]
        sizes = [img_resolution >> level for level in range(len(widths))]
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()

        channels, side = model_channels, in_channels
        kept = []  # channels of what the decoder takes over
        for level, (width, size) in enumerate(zip(widths, sizes, strict=True)):
            if level == 0:
                self.enc[f"{size}x{size}_conv"] = Conv2d(in_channels, channels, 3)
            else:
                self.enc[f"{size}x{size}_down"] = block(channels, channels, resample="down")
            if level > 0 and encoder_type == "skip":
                self.enc[f"{size}x{size}_aux_down"] = resampled(side, side, 0, "down")
                self.enc[f"{size}x{size}_aux_skip"] = Conv2d(side, channels, 1)
            if level > 0 and encoder_type == "residual":
                self.enc[f"{size}x{size}_aux_residual"] = resampled(side, channels, 3, "down")
                side = channels
            kept.append(channels)
            for index in range(num_blocks):
                self.enc[f"{size}x{size}_block{index}"] = block(channels, width, size in attn_resolutions)
                channels = width
                kept.append(channels)

        last = len(widths) - 1
        for level in range(last, -1, -1):
            width, size = widths[level], sizes[level]
            if level == last:
                self.dec[f"{size}x{size}_in0"] = block(channels, channels, attention=True)
                self.dec[f"{size}x{size}_in1"] = block(channels, channels)
            else:
                self.dec[f"{size}x{size}_up"] = block(channels, channels, resample="up")
            for index in range(num_blocks + 1):
                attention = index == num_blocks and size in attn_resolutions
                self.dec[f"{size}x{size}_block{index}"] = block(channels + kept.pop(), width, attention)
                channels = width
            if decoder_type == "skip" and level < last:
                self.dec[f"{size}x{size}_aux_up"] = resampled(out_channels, out_channels, 0, "up")
            if decoder_type == "skip" or level == 0:
                self.dec[f"{size}x{size}_aux_norm"] = group_norm(channels, 1e-6)
                self.dec[f"{size}x{size}_aux_conv"] = Conv2d(channels, out_channels, 3)

    def forward(
        self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None
    ) -> Tensor:
        """Map (B, C, H, W), (B,), (B, label_dim) and (B, augment_dim) to (B, out_channels, H, W)."""
        embedding = self._embed(noise_labels, class_labels, augment_labels)
        x, kept = self._encode(x, embedding)
        return self._decode(x, kept, embedding)

    def _embed(
        self, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None
    ) -> Tensor:
        waves = self.map_noise(noise_labels)
        embedding = torch.cat(waves.chunk(2, dim=1)[::-1], dim=1)  # the published weights want sines first
        if self.map_label is not None and class_labels is not None:
            embedding = embedding + linear(self.map_label, class_labels * math.sqrt(self.label_dim))
        if self.map_augment is not None and augment_labels is not None:
            embedding = embedding + linear(self.map_augment, augment_labels)
        embedding = F.silu(linear(self.map_layer0, embedding))
        return F.silu(linear(self.map_layer1, embedding))

    def _encode(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, list[Tensor]]:
        side = x
        kept: list[Tensor] = []
        for name, layer in self.enc.items():
            if name.endswith("aux_down"):
                side = layer(side)
            elif name.endswith("aux_skip"):
                x = kept[-1] = x + layer(side)
            elif name.endswith("aux_residual"):
                x = kept[-1] = side = (x + layer(side)) / math.sqrt(2.0)
            else:
                x = layer(x, embedding) if isinstance(layer, UNetBlock) else layer(x)
                kept.append(x)
        return x, kept

    def _decode(self, x: Tensor, kept: list[Tensor], embedding: Tensor) -> Tensor:
        output: Tensor | None = None
        for name, layer in self.dec.items():
            if isinstance(layer, UNetBlock):
                if "_block" in name:
                    x = torch.cat([x, kept.pop()], dim=1)
                x = layer(x, embedding)
            elif name.endswith("aux_up"):
                output = layer(output)
            elif isinstance(layer, nn.GroupNorm):
                last = F.silu(normalized(layer, x))
            else:
                output = layer(last) if output is None else output + layer(last)
        assert output is not None
        return output


class DhariwalUNet(nn.Module):
    """ADM: adaptive group norms, 64 channels per attention head.

    Parameters as for `SongUNet`.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
    ) -> None:
        super().__init__()
        embedding = model_channels * channel_mult_emb
        self.map_noise = PositionalEmbedding(model_channels, endpoint=False)
        self.map_augment = nn.Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(model_channels, embedding)
        self.map_layer1 = nn.Linear(embedding, embedding)
        self.map_label = nn.Linear(label_dim, embedding, bias=False) if label_dim else None

        def block(
            inputs: int, outputs: int, attention: bool = False, resample: str | None = None
        ) -> UNetBlock:
            heads = outputs // 64 if attention else 0
            return UNetBlock(inputs, outputs, embedding, heads=heads, resample=resample)

        widths = [model_channels * mult for mult in channel_mult]
        sizes = [img_resolution >> level for level in range(len(widths))]

        self.enc = nn.ModuleDict()
        channels, kept = in_channels, []
        for level, (width, size) in enumerate(zip(widths, sizes, strict=True)):
            if level == 0:
                self.enc[f"{size}x{size}_conv"] = Conv2d(channels, width, 3)
                channels = width
            else:
                self.enc[f"{size}x{size}_down"] = block(channels, channels, resample="down")
            kept.append(channels)
            for index in range(num_blocks):
                self.enc[f"{size}x{size}_block{index}"] = block(channels, width, size in attn_resolutions)
                channels = width
                kept.append(channels)

        self.dec = nn.ModuleDict()
        for level in range(len(widths) - 1, -1, -1):
            width, size = widths[level], sizes[level]
            if level == len(widths) - 1:
                self.dec[f"{size}x{size}_in0"] = block(channels, channels, attention=True)
                self.dec[f"{size}x{size}_in1"] = block(channels, channels)
            else:
                self.dec[f"{size}x{size}_up"] = block(channels, channels, resample="up")
            for index in range(num_blocks + 1):
                inputs = channels + kept.pop()
                self.dec[f"{size}x{size}_block{index}"] = block(inputs, width, size in attn_resolutions)
                channels = width
        self.out_norm = group_norm(channels, 1e-5)
        self.out_conv = Conv2d(channels, out_channels, 3)

    def forward(
        self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None
    ) -> Tensor:
        """Map (B, C, H, W), (B,), (B, label_dim) and (B, augment_dim) to (B, out_channels, H, W)."""
        embedding = self.map_noise(noise_labels)
        if self.map_augment is not None and augment_labels is not None:
            embedding = embedding + linear(self.map_augment, augment_labels)
        embedding = linear(self.map_layer1, F.silu(linear(self.map_layer0, embedding)))
        if self.map_label is not None and class_labels is not None:
            embedding = embedding + linear(self.map_label, class_labels)
        embedding = F.silu(embedding)
        kept = []
        for layer in self.enc.values():
            x = layer(x, embedding) if isinstance(layer, UNetBlock) else layer(x)
            kept.append(x)
        for name, layer in self.dec.items():
            x = layer(torch.cat([x, kept.pop()], dim=1) if "_block" in name else x, embedding)
        output: Tensor = self.out_conv(F.silu(normalized(self.out_norm, x)))
        return output


NETWORKS: dict[str, type[nn.Module]] = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}

# Arguments of the published files that only matter for training.
TRAINING_ONLY = ("dropout", "label_dropout")

# Far beyond any network of these kinds; a file that asks for more would be built for ever.
_LARGEST_SIZE = 65_536
_MOST_BLOCKS = 64
_MOST_LEVELS = 16


def build_network(name: str, /, **arguments: Any) -> nn.Module:
    """Build a network by its published class name and arguments.

    Raises
    ------
    ValueError
        If there is no such network, or an argument is not known or impossible.
    """
    if name not in NETWORKS:
        raise ValueError(f"Network {name[:40]!r} is unknown; expected one of {', '.join(NETWORKS)}.")
    arguments = {key: value for key, value in arguments.items() if key not in TRAINING_ONLY}
    known = inspect.signature(NETWORKS[name]).parameters
    for key, value in arguments.items():
        if key not in known:
            raise ValueError(f"{name} has no argument {key[:40]!r}; expected {', '.join(known)}.")
        _check_size(key, value)
    try:
        return NETWORKS[name](**arguments)
    except (ArithmeticError, RuntimeError, TypeError) as error:
        reason = reason_of(error, 200)
        raise ValueError(f"Network {name} cannot be built: {reason}.") from error


def _check_size(name: str, value: Any) -> None:
    """Raise ValueError unless an argument is the name of a type, a size, or a short list of sizes."""
    if name.endswith("_type") and isinstance(value, str):
        return  # the network itself knows its types
    largest = _MOST_BLOCKS if name == "num_blocks" else _LARGEST_SIZE
    sizes = value if isinstance(value, list | tuple) else [value]
    possible = all(type(size) in (int, float) and 0 <= size <= largest for size in sizes)
    if len(sizes) > _MOST_LEVELS or not possible:
        raise ValueError(
            f"{name} must be a number from 0 to {largest}, or at most {_MOST_LEVELS} of them, which this "
            f"{type(value).__name__} is not."
        )


def _check(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value[:40]!r}, but must be one of {', '.join(choices)}.")
