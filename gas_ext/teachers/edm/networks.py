"""SongUNet (DDPM++ and NCSN++, Song et al. 2021) and DhariwalUNet (ADM, Dhariwal and Nichol 2021).

Arguments and parameter names are those of the published files, except for dropout and initialization: these
networks are for inference and for gradients to their input.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
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

Block = Callable[..., UNetBlock]
Levels = list[tuple[int, int]]  # size and width


class _UNet(nn.Module):
    """The blocks on the way down (`enc`) and up (`dec`), by their published names."""

    def _build_encoder(
        self,
        block: Block,
        levels: Levels,
        channels: tuple[int, int],
        num_blocks: int,
        attn_resolutions: Sequence[int],
    ) -> list[int]:
        """Return the channels of each skip; `channels` are those of the image and the first convolution."""
        self.enc = nn.ModuleDict()
        image, current = channels
        skips = []
        for level, (size, width) in enumerate(levels):
            if level == 0:
                self.enc[f"{size}x{size}_conv"] = Conv2d(image, current, 3)
            else:
                self.enc[f"{size}x{size}_down"] = block(current, current, resample="down")
                self._add_encoder_branch(size, current)
            skips.append(current)
            for index in range(num_blocks):
                attention = size in attn_resolutions
                self.enc[f"{size}x{size}_block{index}"] = block(current, width, attention=attention)
                current = width
                skips.append(current)
        return skips

    def _build_decoder(
        self, block: Block, levels: Levels, skips: list[int], attending: Sequence[tuple[int, int]]
    ) -> int:
        """Return the channels of the last block; blocks (size, index) in `attending` have attention."""
        self.dec = nn.ModuleDict()
        channels, blocks_per_level = skips[-1], len(skips) // len(levels)
        for level, (size, width) in reversed(list(enumerate(levels))):
            coarsest = level == len(levels) - 1
            if coarsest:
                self.dec[f"{size}x{size}_in0"] = block(channels, channels, attention=True)
                self.dec[f"{size}x{size}_in1"] = block(channels, channels)
            else:
                self.dec[f"{size}x{size}_up"] = block(channels, channels, resample="up")
            for index in range(blocks_per_level):
                inputs, attention = channels + skips.pop(), (size, index) in attending
                self.dec[f"{size}x{size}_block{index}"] = block(inputs, width, attention=attention)
                channels = width
            self._add_decoder_branch(size, channels, coarsest, finest=level == 0)
        return channels

    def _add_encoder_branch(self, size: int, channels: int) -> None:
        """Add the layers of an auxiliary branch to a level of `enc`."""

    def _add_decoder_branch(self, size: int, channels: int, coarsest: bool, finest: bool) -> None:
        """Add the layers of an auxiliary branch to a level of `dec`."""


class SongUNet(_UNet):
    """DDPM++ ("positional", "standard") or NCSN++ ("fourier", "residual").

    Arguments are those of the published class: `embedding_type` is "positional" or "fourier", `encoder_type`
    "standard", "skip" or "residual", `decoder_type` "standard" or "skip"; ValueError for other types.
    `label_dim` and `augment_dim` are the sizes of the class and augmentation vectors, 0 for none.
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
        _check_choice("embedding_type", embedding_type, ("positional", "fourier"))
        _check_choice("encoder_type", encoder_type, ("standard", "skip", "residual"))
        _check_choice("decoder_type", decoder_type, ("standard", "skip"))
        self.label_dim = label_dim
        self._encoder_type, self._decoder_type = encoder_type, decoder_type
        self._taps, self._branch_channels, self._out_channels = resample_filter, in_channels, out_channels
        embedding, noise = model_channels * channel_mult_emb, model_channels * channel_mult_noise
        fourier = embedding_type == "fourier"
        self.map_noise = FourierEmbedding(noise) if fourier else PositionalEmbedding(noise, endpoint=True)
        self.map_label = nn.Linear(label_dim, noise) if label_dim else None
        self.map_augment = nn.Linear(augment_dim, noise, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(noise, embedding)
        self.map_layer1 = nn.Linear(embedding, embedding)

        block = partial(
            UNetBlock,
            embedding=embedding,
            taps=resample_filter,
            eps=1e-6,
            skip_scale=math.sqrt(0.5),
            adaptive_scale=False,
            project_skip=True,
        )
        levels = [(img_resolution >> i, model_channels * mult) for i, mult in enumerate(channel_mult)]
        channels = (in_channels, model_channels)
        skips = self._build_encoder(block, levels, channels, num_blocks, attn_resolutions)
        self._build_decoder(block, levels, skips, [(size, num_blocks) for size in attn_resolutions])

    def _resampled(self, inputs: int, outputs: int, kernel: int, resample: str) -> Conv2d:
        return Conv2d(inputs, outputs, kernel, resample, self._taps, convolve_first=kernel > 1)

    def _add_encoder_branch(self, size: int, channels: int) -> None:
        branch = self._branch_channels
        if self._encoder_type == "skip":
            self.enc[f"{size}x{size}_aux_down"] = self._resampled(branch, branch, 0, "down")
            self.enc[f"{size}x{size}_aux_skip"] = Conv2d(branch, channels, 1)
        elif self._encoder_type == "residual":
            self.enc[f"{size}x{size}_aux_residual"] = self._resampled(branch, channels, 3, "down")
            self._branch_channels = channels

    def _add_decoder_branch(self, size: int, channels: int, coarsest: bool, finest: bool) -> None:
        out, skip = self._out_channels, self._decoder_type == "skip"
        if skip and not coarsest:
            self.dec[f"{size}x{size}_aux_up"] = self._resampled(out, out, 0, "up")
        if skip or finest:
            self.dec[f"{size}x{size}_aux_norm"] = group_norm(channels, 1e-6)
            self.dec[f"{size}x{size}_aux_conv"] = Conv2d(channels, out, 3)

    def forward(
        self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None
    ) -> Tensor:
        """Map (B, C, H, W), (B,), (B, label_dim) and (B, augment_dim) to (B, out_channels, H, W)."""
        embedding = self._embed(noise_labels, class_labels, augment_labels)
        x, skips = self._encode(x, embedding)
        return self._decode(x, skips, embedding)

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
        branch = x
        skips: list[Tensor] = []
        for name, layer in self.enc.items():
            if name.endswith("aux_down"):
                branch = layer(branch)
            elif name.endswith("aux_skip"):
                x = skips[-1] = x + layer(branch)
            elif name.endswith("aux_residual"):
                x = skips[-1] = branch = (x + layer(branch)) / math.sqrt(2.0)
            else:
                x = layer(x, embedding) if isinstance(layer, UNetBlock) else layer(x)
                skips.append(x)
        return x, skips

    def _decode(self, x: Tensor, skips: list[Tensor], embedding: Tensor) -> Tensor:
        output: Tensor | None = None
        for name, layer in self.dec.items():
            if isinstance(layer, UNetBlock):
                if "_block" in name:
                    x = torch.cat([x, skips.pop()], dim=1)
                x = layer(x, embedding)
            elif name.endswith("aux_up"):
                output = layer(output)
            elif isinstance(layer, nn.GroupNorm):
                last = F.silu(normalized(layer, x))
            else:
                output = layer(last) if output is None else output + layer(last)
        assert output is not None
        return output


class DhariwalUNet(_UNet):
    """ADM: adaptive group norms, 64 channels per attention head. Parameters as for `SongUNet`."""

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

        block = partial(UNetBlock, embedding=embedding, head_channels=64)
        levels = [(img_resolution >> i, model_channels * mult) for i, mult in enumerate(channel_mult)]
        channels = (in_channels, levels[0][1])
        skips = self._build_encoder(block, levels, channels, num_blocks, attn_resolutions)
        attending = [(size, index) for size in attn_resolutions for index in range(num_blocks + 1)]
        last = self._build_decoder(block, levels, skips, attending)
        self.out_norm = group_norm(last, 1e-5)
        self.out_conv = Conv2d(last, out_channels, 3)

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
        skips = []
        for layer in self.enc.values():
            x = layer(x, embedding) if isinstance(layer, UNetBlock) else layer(x)
            skips.append(x)
        for name, layer in self.dec.items():
            x = layer(torch.cat([x, skips.pop()], dim=1) if "_block" in name else x, embedding)
        output: Tensor = self.out_conv(F.silu(normalized(self.out_norm, x)))
        return output


NETWORKS: dict[str, type[nn.Module]] = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}

# Arguments of the published files that only matter for training.
TRAINING_ONLY = ("dropout", "label_dropout")

# Far beyond any network of these classes; building what a hostile file describes would never end.
_LARGEST_SIZE = 65_536
_MOST_BLOCKS = 64
_MOST_LEVELS = 16


def build_network(name: str, /, **arguments: Any) -> nn.Module:
    """Build a network by its published class name and arguments; ValueError if these are impossible."""
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
    except (ArithmeticError, LookupError, RuntimeError, TypeError) as error:
        raise ValueError(f"Network {name} cannot be built: {reason_of(error, 200)}.") from error


def _check_size(name: str, value: Any) -> None:
    """Raise ValueError unless an argument is the name of a type, a size, or a short list of sizes."""
    if name.endswith("_type") and isinstance(value, str):
        return  # the network itself knows its types
    largest = _MOST_BLOCKS if name == "num_blocks" else _LARGEST_SIZE
    sizes = value if isinstance(value, list | tuple) else [value]
    possible = all(type(size) in (int, float) and 0 <= size <= largest for size in sizes)
    if len(sizes) > _MOST_LEVELS or not possible:
        raise ValueError(
            f"{name} must be a number from 0 to {largest}, or at most {_MOST_LEVELS} of them, but got an "
            f"invalid {type(value).__name__}."
        )


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value[:40]!r}, but must be one of {', '.join(choices)}.")
