"""How each network class of diffusers is called: one function and one line of `NETWORKS` per class.

To add an architecture, write a function of its configuration that returns a `NetworkInterface`, and enter it
into `NETWORKS` under the name of its class; for prompts also a function that encodes them (`conditions`).
Schedule, guidance, decoding and folders follow. One that is called like a UNet2DModel takes two lines:

    def _my_network(config):
        return _of_images(_call_labelled, config)

    NETWORKS = {..., "MyNetwork": _my_network}

For a single model, `Denoiser.from_callable` is simpler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gas_ext.denoisers import Condition
from gas_ext.teachers.diffusers.conditions import (
    Constants,
    Encoder,
    distilled_guidance,
    encode_clip,
    encode_flux,
    encode_sd3,
    encode_sdxl,
    size_conditions,
)

Config = Mapping[str, Any]
NetworkCall = Callable[[nn.Module, Tensor, Tensor, Condition], Tensor]


@dataclass(frozen=True)
class NetworkInterface:
    """How a network is called, and what its states and conditions are.

    Parameters
    ----------
    call : callable
        call(network, x, time, condition) -> output: x (B, channels, *size) in the network's dtype; time (B,)
        as from its pipeline, but float64 and not rounded; condition as described below, or None.
    channels : int
        First dimension of a state.
    size : tuple of int, optional
        The other dimensions; None if the configuration does not state them.
    label_rows : int, optional
        For class-conditional networks: rows of the table of labels.
    null_label : bool
        Whether the last row means "no label".
    condition_keys : tuple of str
        For text-conditional networks: names of a condition's tensors, whose first dimension is the batch.
    encode : callable, optional
        Computes them from prompts with the parts of a pipeline.
    constants : callable, optional
        Returns those that are the same for all samples.
    guided : bool
        Whether ``guidance_scale`` of its pipeline means classifier-free guidance.
    """

    call: NetworkCall
    channels: int
    size: tuple[int, ...] | None
    label_rows: int | None = None
    null_label: bool = False
    condition_keys: tuple[str, ...] = ()
    encode: Encoder | None = None
    constants: Constants | None = None
    guided: bool = True


def interface_of(network: nn.Module) -> NetworkInterface:
    """Return how a network is called; ValueError if its class or one of its inputs is unknown."""
    name = type(network).__name__
    if name not in NETWORKS:
        raise ValueError(
            f"{name} is not supported, only {', '.join(NETWORKS)}; wrap it with Denoiser.from_callable("
            "lambda x, t, condition: ..., schedule=..., ...), or enter it into "
            "gas_ext.teachers.diffusers.NETWORKS."
        )
    config: Any = network.config
    return NETWORKS[name](config)


def _refused(name: str, why: str) -> ValueError:
    return ValueError(f"This {name} is not supported, because {why}; use Denoiser.from_callable.")


def _of_images(call: NetworkCall, config: Config, **options: Any) -> NetworkInterface:
    size = config.get("sample_size")
    if size is not None:
        size = (size, size) if isinstance(size, int) else tuple(size)
    return NetworkInterface(call, config["in_channels"], size, **options)


def _unet_1d(config: Config) -> NetworkInterface:
    return NetworkInterface(_call_labelled, config["in_channels"], (config["sample_size"],))


def _unet_2d(config: Config) -> NetworkInterface:
    if config.get("time_embedding_type") == "learned":
        raise _refused("UNet2DModel", "its learned embedding takes whole timesteps only")
    if config.get("class_embed_type") is not None:
        raise _refused("UNet2DModel", f"its class_embed_type is {config['class_embed_type']!r}")
    return _of_images(_call_labelled, config, label_rows=config.get("num_class_embeds"))


def _dit(config: Config) -> NetworkInterface:
    rows = config["num_embeds_ada_norm"] + 1
    return _of_images(_call_labelled, config, label_rows=rows, null_label=True)


def _call_labelled(network: nn.Module, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
    labels = {} if condition is None else {"class_labels": condition}
    output: Tensor = network(x, timestep=time, return_dict=False, **labels)[0]
    return output


def _unet_2d_condition(config: Config) -> NetworkInterface:
    """Stable Diffusion 1 and 2, and with `addition_embed_type` "text_time" SDXL."""
    _check_conditional_unet("UNet2DConditionModel", config)
    addition = config.get("addition_embed_type")
    if addition == "text_time":
        keys = ("encoder_hidden_states", "text_embeds", "time_ids")
        return _of_images(
            _call_sdxl, config, condition_keys=keys, encode=encode_sdxl, constants=size_conditions
        )
    if addition is not None:
        raise _refused("UNet2DConditionModel", f"its addition_embed_type is {addition!r}")
    return _of_images(_call_prompted, config, condition_keys=("encoder_hidden_states",), encode=encode_clip)


def _unet_3d_condition(config: Config) -> NetworkInterface:
    """Videos (channels, frames, height, width); the number of frames is free, so `sample_shape` gives it."""
    _check_conditional_unet("UNet3DConditionModel", config)
    keys = ("encoder_hidden_states",)
    return NetworkInterface(
        _call_prompted, config["in_channels"], None, condition_keys=keys, encode=encode_clip
    )


def _check_conditional_unet(name: str, config: Config) -> None:
    for option in ("class_embed_type", "num_class_embeds", "time_cond_proj_dim", "encoder_hid_dim_type"):
        if config.get(option) is not None:
            raise _refused(name, f"its {option} is {config[option]!r}")


def _sd3(config: Config) -> NetworkInterface:
    keys = ("encoder_hidden_states", "pooled_projections")
    return _of_images(_call_prompted, config, condition_keys=keys, encode=encode_sd3)


def _call_prompted(network: nn.Module, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
    output: Tensor = network(x, timestep=time, return_dict=False, **condition)[0]
    return output


def _call_sdxl(network: nn.Module, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
    added = {name: condition[name] for name in ("text_embeds", "time_ids")}
    text = {"encoder_hidden_states": condition["encoder_hidden_states"], "added_cond_kwargs": added}
    return _call_prompted(network, x, time, text)


def _flux(config: Config) -> NetworkInterface:
    """FLUX: the states are latents as the VAE has them; 2 x 2 of them make a token."""
    distilled = bool(config.get("guidance_embeds"))
    keys = ("encoder_hidden_states", "pooled_projections")
    return NetworkInterface(
        _call_flux,
        config["in_channels"] // 4,
        (128, 128),  # a megapixel, which the pipeline makes by default
        condition_keys=(*keys, "guidance") if distilled else keys,
        encode=encode_flux,
        constants=distilled_guidance if distilled else None,
        guided=False,
    )


def _call_flux(network: nn.Module, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
    rows, columns = x.shape[2] // 2, x.shape[3] // 2
    length = condition["encoder_hidden_states"].shape[1]
    positions = {
        "txt_ids": torch.zeros(length, 3, device=x.device, dtype=x.dtype),
        "img_ids": _flux_positions(rows, columns, x),
    }
    # A token is 2 x 2 latents; its entries are ordered (C, 2, 2).
    tokens = F.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2).contiguous()
    output = _call_prompted(network, tokens, time / 1000.0, {**condition, **positions})
    return F.pixel_shuffle(output.transpose(1, 2).reshape(len(x), -1, rows, columns), 2)


def _flux_positions(rows: int, columns: int, like: Tensor) -> Tensor:
    """Return (0, row, column) of each token: (rows * columns, 3)."""
    row = torch.arange(rows, device=like.device, dtype=like.dtype).repeat_interleave(columns)
    column = torch.arange(columns, device=like.device, dtype=like.dtype).repeat(rows)
    return torch.stack([torch.zeros_like(row), row, column], dim=1)


# class name -> what its configuration says
NETWORKS: dict[str, Callable[[Config], NetworkInterface]] = {
    "UNet1DModel": _unet_1d,
    "UNet2DModel": _unet_2d,
    "UNet2DConditionModel": _unet_2d_condition,
    "UNet3DConditionModel": _unet_3d_condition,
    "DiTTransformer2DModel": _dit,
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
}
