"""The modules that make up a model of diffusers, found in a pipeline or given one by one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gas_ext._utils.optional import require
from gas_ext.teachers.hub import UNUSED_PARTS

_NETWORKS = ("unet", "transformer")
# More than one network, or a second input at every step: not a function of state, time and condition alone.
_UNKNOWN_PARTS = ("controlnet", "adapter", "transformer_2", "unet_2", "prior", "low_res_scheduler")


@dataclass
class Parts:
    """A network, its scheduler (which describes the noise schedule), and the modules around it.

    Latents need a `vae`; prompts need `text_encoders` and the `pipeline` they come from.
    """

    network: Any
    scheduler: Any
    vae: Any = None
    text_encoders: list[nn.Module] = field(default_factory=list)
    pipeline: Any = None

    def to(self, dtype: torch.dtype) -> None:
        """Convert all modules in place."""
        for module in (self.network, self.vae, *self.text_encoders):
            if module is not None:
                convert(module, dtype)

    def latent_factor(self) -> int:
        """Return how many pixels a latent is wide and high; 1 without a VAE."""
        if self.vae is None:
            return 1
        own = getattr(self.pipeline, "vae_scale_factor", None)
        return int(own) if own else 2 ** (len(self.vae.config["block_out_channels"]) - 1)


def convert(module: Any, dtype: torch.dtype) -> None:
    """Convert a module in place, unless it has this dtype: a T5 in half precision has some float32 layers."""
    if module.dtype != dtype:
        module.to(dtype)


def parts_of(model: Any, scheduler: Any = None, vae: Any = None) -> Parts:
    """Take a pipeline apart, or put a network and its scheduler together; see `from_diffusers`."""
    diffusers = require("diffusers", "diffusers")
    if isinstance(model, diffusers.DiffusionPipeline):
        if vae is not None:
            raise ValueError(
                f"A {type(model).__name__} decodes with its own part; leave vae out, or replace that part: "
                "pipeline.vae = ..."
            )
        return _parts_of_pipeline(model, scheduler)
    if not isinstance(model, diffusers.ModelMixin):
        raise TypeError(
            f"Got a {type(model).__name__}, but expected a diffusers pipeline or network, a folder or a name."
        )
    _check_scheduler(type(model).__name__, scheduler)
    return Parts(model, scheduler, vae)


def _check_scheduler(name: str, scheduler: Any) -> None:
    if scheduler is None:
        raise ValueError(
            f"A {name} alone does not state its noise schedule; pass the scheduler that it was trained with: "
            "from_diffusers(network, scheduler=DDPMScheduler(...))."
        )
    if not isinstance(scheduler, require("diffusers", "diffusers").SchedulerMixin):
        raise TypeError(
            f"The scheduler is a {type(scheduler).__name__}, but must be one of diffusers: DDPMScheduler()."
        )


def _parts_of_pipeline(pipeline: Any, scheduler: Any) -> Parts:
    name = type(pipeline).__name__
    components: Mapping[str, Any] = pipeline.components
    unknown = [part for part in _UNKNOWN_PARTS if components.get(part) is not None]
    networks = [part for part in _NETWORKS if components.get(part) is not None]
    if unknown or len(networks) != 1:
        found = ", ".join(unknown + networks) or "none"
        raise ValueError(
            f"A {name} is not supported: expected one network ({' or '.join(_NETWORKS)}) that depends on "
            f"state, time and condition alone, but found {found}; use Denoiser.from_callable."
        )
    if pipeline.config.get("requires_aesthetics_score"):
        raise ValueError(
            f"This {name} refines images by an aesthetic score, which is not supported; use "
            "Denoiser.from_callable."
        )
    pipeline = copy.copy(pipeline)  # the user's pipeline is not changed
    _check_scheduler(name, pipeline.scheduler if scheduler is None else scheduler)
    if scheduler is not None:
        pipeline.scheduler = scheduler
    pipeline.register_modules(**{part: None for part in UNUSED_PARTS if components.get(part) is not None})
    if "requires_safety_checker" in pipeline.config:
        pipeline.register_to_config(requires_safety_checker=False)
    vae = components.get("vae") or components.get("vqvae")
    encoders = list(_text_encoders(components).values())
    return Parts(components[networks[0]], pipeline.scheduler, vae, encoders, pipeline)


def _text_encoders(components: Mapping[str, Any]) -> dict[str, nn.Module]:
    return {
        key: part for key, part in components.items() if key.startswith("text_encoder") and part is not None
    }


def missing_for_prompts(pipeline: Any) -> str | None:
    """Say what a pipeline lacks for encoding prompts, or None."""
    if pipeline is None or not hasattr(pipeline, "encode_prompt"):
        return "no text encoder"
    components = pipeline.components
    encoders = _text_encoders(components)
    if not encoders:
        return "no text encoder"
    tokenizers = [key.replace("text_encoder", "tokenizer") for key in encoders]
    missing = [key for key in tokenizers if components.get(key) is None]
    return f"no {' and no '.join(missing)}" if missing else None


def decode_latents(vae: Any, latents: Tensor) -> Tensor:
    """Decode latents (B, C, H, W), or videos (B, C, frames, H, W) frame by frame, to [-1, 1], not clamped.

    The latents are scaled in their own dtype, decoded in that of the VAE, and returned in their own.
    """
    config = vae.config
    if config.get("force_upcast") and vae.dtype == torch.float16:
        # Its activations overflow in half precision. A copy, because the pipeline needs it unchanged.
        vae = copy.deepcopy(vae).float()
    scale = config.get("scaling_factor") or 1.0
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None:
        shape = (1, -1, *[1] * (latents.ndim - 2))
        means, stds = (latents.new_tensor(values).reshape(shape) for values in (mean, std))
        unscaled = latents * stds / scale + means
    else:
        unscaled = latents / scale + (config.get("shift_factor") or 0.0)
    is_video = latents.ndim == 5
    frames = unscaled.transpose(1, 2).flatten(0, 1) if is_video else unscaled
    images: Tensor = vae.decode(frames.to(vae.dtype), return_dict=False)[0]
    if is_video:
        images = images.reshape(len(latents), -1, *images.shape[1:]).transpose(1, 2)
    return images.to(latents.dtype)
