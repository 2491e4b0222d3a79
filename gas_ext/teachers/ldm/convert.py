"""Conversion of CompVis weights to diffusers modules, with none missing and none left over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gas_ext._utils.building import described_by, filled
from gas_ext._utils.optional import require
from gas_ext.teachers.ldm.architecture import Weights
from gas_ext.teachers.ldm.checkpoint import listed

EXTRA = "diffusers"


class _Name(str):
    """A weight's old name, passed to diffusers' renaming in place of the weight to see where it ends up."""

    shape = ()
    ndim = 0


def build_unet(class_name: str, config: dict[str, Any], weights: Weights) -> Any:
    """Return a UNet2DModel or UNet2DConditionModel with these weights."""
    single_file = require("diffusers.loaders.single_file_utils", EXTRA)
    prefix = single_file.LDM_UNET_KEY  # which the renaming takes off
    names = {f"{prefix}{key}": _Name(key) for key in weights}
    converted = _renamed(weights, single_file.convert_ldm_unet_checkpoint, names, config)
    if class_name == "UNet2DModel":
        converted = _split_attention(converted, config["attention_head_dim"])
    return filled(build_module(class_name, config, converted), converted)


def build_first_stage(class_name: str, config: dict[str, Any], weights: Weights) -> Any:
    """Return a VQModel or AutoencoderKL with these weights."""
    single_file = require("diffusers.loaders.single_file_utils", EXTRA)
    codebook = {key: weight for key, weight in weights.items() if key.startswith("quantize.")}
    rest = {key: weight for key, weight in weights.items() if key not in codebook}
    names = {key: _Name(key) for key in rest}
    converted = codebook | _renamed(rest, single_file.convert_ldm_vae_checkpoint, names, config)
    for key, weight in converted.items():
        if ".attentions." in key and weight.ndim > 2:
            converted[key] = weight.flatten(1)  # 1x1 convolutions have become linear
    return filled(build_module(class_name, config, converted), converted)


def build_text_encoder(config: dict[str, Any], weights: Weights) -> Any:
    """Return a CLIPTextModel with these weights, whose names start with "embeddings." and so on."""
    transformers = require("transformers", EXTRA)
    with torch.device("meta"):
        module = transformers.CLIPTextModel(transformers.CLIPTextConfig(**config))
    # Up to version 4 the names of transformers have one level more.
    level = "text_model."
    outer = level if any(key.startswith(level) for key in module.state_dict()) else ""
    filled(module, {f"{outer}{key}": weight for key, weight in weights.items()})
    for parent in module.modules():
        if "position_ids" in parent._buffers:  # is not in a state dict
            positions = torch.arange(config["max_position_embeddings"])[None]
            parent.register_buffer("position_ids", positions, persistent=False)
    return module


def build_module(class_name: str, config: dict[str, Any], weights: Weights) -> Any:
    """Return a diffusers module without memory, to be filled with these weights."""
    with described_by(weights):
        return getattr(require("diffusers", EXTRA), class_name).from_config(config)


def module_config(module: Any) -> dict[str, Any]:
    """Return the arguments of a diffusers module as plain JSON values."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in module.config.items()
        if not key.startswith("_")
    }


def _renamed(
    weights: Weights,
    rename: Callable[[dict[str, _Name], dict[str, Any]], dict[str, str | None]],
    names: dict[str, _Name],
    config: dict[str, Any],
) -> dict[str, Tensor]:
    """Return the weights under their new names, which a function of diffusers finds; none may be lost."""
    try:
        renamed = rename(names, config)
    except KeyError as error:
        raise ValueError(f"it lacks {error.args[0]}") from error
    used = set(renamed.values())
    lost = [key for key in weights if key not in used]
    if lost:
        raise ValueError(f"it has tensors of no known network: {listed(lost)}")
    return {new: weights[old] for new, old in renamed.items() if old is not None}


def _split_attention(weights: dict[str, Tensor], head_channels: int) -> dict[str, Tensor]:
    """Rename the attention of unconditional networks.

    One convolution makes queries, keys and values, head by head: its rows are (heads, 3, head channels).
    """
    renaming = {"norm": "group_norm", "proj_out": "to_out.0"}
    converted = {}
    for key, weight in weights.items():
        if ".attentions." not in key:
            converted[key] = weight
            continue
        *blocks, layer, parameter = key.split(".")
        block = ".".join(blocks)
        weight = weight.flatten(1) if weight.ndim > 2 else weight
        if layer != "qkv":
            converted[f"{block}.{renaming.get(layer, layer)}.{parameter}"] = weight
            continue
        if weight.shape[0] % (3 * head_channels):
            raise ValueError(f"{key} has {weight.shape[0]} rows for heads of {head_channels} channels")
        parts = weight.reshape(-1, 3, head_channels, *weight.shape[1:]).unbind(1)
        for name, part in zip("qkv", parts, strict=True):
            converted[f"{block}.to_{name}.{parameter}"] = part.flatten(0, 1)
    return converted
