"""Constructor arguments of diffusers modules, read off the tensors of a CompVis checkpoint.

Nothing in such a file describes its networks; names and shapes of the tensors do, except for the number of
attention heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

Weights = Mapping[str, Tensor]


class _Level(NamedTuple):
    """Blocks of one resolution."""

    channels: int
    layers: int
    attention: bool


def unconditional_unet(weights: Weights, latent_size: int, num_head_channels: int) -> dict[str, Any]:
    """Return the arguments of UNet2DModel."""
    levels = _levels(weights)
    _check_heads(levels, "num_head_channels", num_head_channels)
    return {
        **_common(weights, levels, latent_size, "Attn"),
        "attention_head_dim": num_head_channels,  # here: channels of a head
    }


def conditional_unet(weights: Weights, latent_size: int, num_heads: int) -> dict[str, Any]:
    """Return the arguments of UNet2DConditionModel."""
    levels = _levels(weights)
    _check_heads(levels, "num_heads", num_heads)
    depth = _count(weights, "middle_block.1.transformer_blocks.{}.norm1.weight")
    return {
        **_common(weights, levels, latent_size, "CrossAttn"),
        "attention_head_dim": num_heads,  # here: heads, despite its name
        "cross_attention_dim": _size(weights, "middle_block.1.transformer_blocks.0.attn2.to_k.weight", 1),
        "transformer_layers_per_block": depth,
    }


def _common(weights: Weights, levels: list[_Level], latent_size: int, prefix: str) -> dict[str, Any]:
    prefixes = [prefix if level.attention else "" for level in levels]
    return {
        "sample_size": latent_size,
        "in_channels": _size(weights, "input_blocks.0.0.weight", 1),
        "out_channels": _size(weights, "out.2.weight", 0),
        "layers_per_block": levels[0].layers,
        "block_out_channels": [level.channels for level in levels],
        "down_block_types": [f"{each}DownBlock2D" for each in prefixes],
        "up_block_types": [f"{each}UpBlock2D" for each in reversed(prefixes)],
    }


def _check_heads(levels: list[_Level], name: str, number: int) -> None:
    attending = [level.channels for level in levels if level.attention] + [levels[-1].channels]  # the middle
    for channels in attending:
        _check_multiple("attention", channels, name, number)


def _check_multiple(part: str, channels: int, name: str, number: int) -> None:
    if number < 1 or channels % number:
        raise ValueError(
            f"its {part} has {channels} channels, not a multiple of {name} = {number}; give another value"
        )


def _levels(weights: Weights) -> list[_Level]:
    """Walk the input blocks: residual blocks, perhaps with attention, and a convolution between levels."""
    count = len({key.split(".")[1] for key in weights if key.startswith("input_blocks.")})
    blocks: list[list[tuple[int, bool]]] = [[]]  # per level and block: channels, attention
    for i in range(1, count):
        if f"input_blocks.{i}.0.op.weight" in weights:
            blocks.append([])
            continue
        channels = _size(weights, f"input_blocks.{i}.0.out_layers.3.weight", 0)
        blocks[-1].append((channels, f"input_blocks.{i}.1.norm.weight" in weights))
    lengths = {len(level) for level in blocks}
    if len(lengths) > 1 or 0 in lengths or any(len(set(level)) > 1 for level in blocks):
        raise ValueError(
            "its levels differ in their number of blocks, or the blocks of a level in their type"
        )
    return [_Level(level[0][0], len(level), level[0][1]) for level in blocks]


def first_stage(weights: Weights, scale_factor: float, latent_size: int) -> dict[str, Any]:
    """Return the arguments that VQModel and AutoencoderKL share."""
    depth = _count(weights, "encoder.down.{}.block.0.conv1.weight")
    channels = [_size(weights, f"encoder.down.{i}.block.0.conv1.weight", 0) for i in range(depth)]
    return {
        "sample_size": latent_size << (depth - 1),
        "in_channels": _size(weights, "encoder.conv_in.weight", 1),
        "out_channels": _size(weights, "decoder.conv_out.weight", 0),
        "latent_channels": _size(weights, "decoder.conv_in.weight", 1),
        "layers_per_block": _count(weights, "encoder.down.0.block.{}.conv1.weight"),
        "block_out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * depth,
        "up_block_types": ["UpDecoderBlock2D"] * depth,
        "scaling_factor": scale_factor,
    }


def vq_first_stage(weights: Weights, scale_factor: float, latent_size: int) -> dict[str, Any]:
    """Return the arguments of VQModel."""
    return {
        **first_stage(weights, scale_factor, latent_size),
        "num_vq_embeddings": _size(weights, "quantize.embedding.weight", 0),
        "vq_embed_dim": _size(weights, "quantize.embedding.weight", 1),
    }


def clip_text(weights: Weights, heads: int) -> dict[str, Any]:
    """Return the arguments of CLIPTextConfig; the names of the weights start with "embeddings." and so on."""
    width = _size(weights, "embeddings.token_embedding.weight", 1)
    _check_multiple("text encoder", width, "text_heads", heads)
    vocabulary = _size(weights, "embeddings.token_embedding.weight", 0)
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "projection_dim": width,
        "intermediate_size": _size(weights, "encoder.layers.0.mlp.fc1.weight", 0),
        "num_hidden_layers": _count(weights, "encoder.layers.{}.mlp.fc1.weight"),
        "num_attention_heads": heads,
        "max_position_embeddings": _size(weights, "embeddings.position_embedding.weight", 0),
        "hidden_act": "quick_gelu",
        "bos_token_id": vocabulary - 2,  # as in the vocabulary of CLIP: start and end come last
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }


def _size(weights: Weights, key: str, axis: int) -> int:
    if key not in weights:
        raise ValueError(f"it lacks {key}")
    shape = weights[key].shape
    if len(shape) <= axis:
        raise ValueError(f"its {key} has the shape {tuple(shape)}")
    return shape[axis]


def _count(weights: Weights, pattern: str) -> int:
    """Return how many of pattern.format(0), pattern.format(1), ... there are; at least one."""
    count = 0
    while pattern.format(count) in weights:
        count += 1
    if not count:
        raise ValueError(f"it lacks {pattern.format(0)}")
    return count
