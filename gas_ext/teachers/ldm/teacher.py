"""Latent diffusion models as teachers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gas_ext._utils.building import filled
from gas_ext.denoisers import Denoiser, per_sample
from gas_ext.schedules import NoiseSchedule
from gas_ext.teachers.ldm import architecture
from gas_ext.teachers.ldm.checkpoint import Checkpoint, listed
from gas_ext.teachers.ldm.convert import build_first_stage, build_module, build_unet, module_config


class LatentTeacher(Denoiser):
    """A latent diffusion model that predicts the noise in the latents of a vector-quantized autoencoder.

    Frozen and in evaluation mode; gradients flow to x and t. The network counts time from 0 to
    num_timesteps - 1; t = (its time + 1) / num_timesteps is never rounded.

    `unet` (UNet2DModel or UNet2DConditionModel) predicts epsilon, the latter conditioned on a row of
    `class_embedding`, whose last row means "no label". `first_stage` is a VQModel; `scale_factor` multiplies
    its latents.
    """

    family = "ldm"
    truncates = True

    def __init__(
        self,
        unet: Any,
        first_stage: Any,
        class_embedding: nn.Embedding | None = None,
        *,
        schedule: NoiseSchedule,
        num_timesteps: int = 1000,
        scale_factor: float = 1.0,
        name: str = "ldm",
        t_eps: float = 1e-3,
        guidance_scale: float | None = None,
    ) -> None:
        channels, size = unet.config.in_channels, unet.config.sample_size
        super().__init__(
            schedule=schedule,
            prediction_type="epsilon",
            sample_shape=(channels, size, size),
            name=name,
            condition_kind="none" if class_embedding is None else "label",
            num_classes=None if class_embedding is None else class_embedding.num_embeddings - 1,
            t_eps=t_eps,
            guidance_scale=guidance_scale,
        )
        width = first_stage.quantize.vq_embed_dim
        if unet.config.out_channels != channels or width != channels:
            raise ValueError(
                f"The network maps {channels} channels to {unet.config.out_channels} and its first stage has "
                f"codes of {width}, but all must agree; give the first stage that it was trained with."
            )
        self.unet = unet
        self.first_stage = first_stage
        self.class_embedding = class_embedding
        self.num_timesteps = num_timesteps
        self.scale_factor = scale_factor
        self.requires_grad_(False).eval()

    def predict(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Predict the noise in latents; the label num_classes, like None, means "no label"."""
        batch = x.shape[0]
        time = self.num_timesteps * t.to(device=x.device, dtype=torch.float64).expand(batch) - 1.0
        inputs: tuple[Tensor, ...] = (x.to(self.unet.dtype), time)
        if self.class_embedding is not None:
            if condition is None:
                condition = self.unconditional_condition()
            labels = per_sample(condition.to(x.device), batch)
            inputs = (*inputs, self.class_embedding(labels)[:, None])
        output: Tensor = self.unet(*inputs, return_dict=False)[0]
        return output.to(x.dtype)

    @property
    def input_dtype(self) -> torch.dtype:
        """Dtype of the network."""
        dtype: torch.dtype = self.unet.dtype
        return dtype

    def decode(self, samples: Tensor) -> Tensor:
        """Turn latents (B, C, H, W) into images (B, 3, f H, f W), mostly in [-1, 1].

        The autoencoder replaces every latent vector by the nearest of its codebook; gradients skip that.
        """
        self.check_channels(samples)
        latents = samples.to(self.first_stage.dtype) / self.scale_factor
        images: Tensor = self.first_stage.decode(latents, return_dict=False)[0]
        return images.to(samples.dtype)

    def save_weights(self, folder: Path) -> dict[str, Any]:
        """Write one safetensors file per network; return how to rebuild them."""
        networks = {"unet": self.unet, "first_stage": self.first_stage}
        if self.class_embedding is not None:
            networks["class_embedding"] = self.class_embedding
        for name, network in networks.items():
            tensors = {key: value.contiguous() for key, value in network.state_dict().items()}
            save_file(tensors, folder / f"{name}.safetensors")
        return {
            "unet_class": type(self.unet).__name__,
            "unet": module_config(self.unet),
            "first_stage": module_config(self.first_stage),
            "class_embedding": list(self.class_embedding.weight.shape) if self.class_embedding else None,
            "schedule": self.schedule.to_dict(),
            "num_timesteps": self.num_timesteps,
            "scale_factor": self.scale_factor,
            "t_eps": self.t_eps,
            "guidance_scale": self.guidance_scale,
        }

    @classmethod
    def load_weights(cls, folder: Path, config: dict[str, Any]) -> LatentTeacher:
        """Rebuild what `save_weights` wrote."""
        if config["unet_class"] not in ("UNet2DModel", "UNet2DConditionModel"):
            raise ValueError(
                f"The card of {folder} names a {config['unet_class']}; import the teacher again."
            )
        classes = {"unet": config["unet_class"], "first_stage": "VQModel"}
        weights = {name: load_file(folder / f"{name}.safetensors") for name in classes}
        networks = {
            name: build_module(class_name, config[name], weights[name])
            for name, class_name in classes.items()
        }
        if config["class_embedding"]:
            networks["class_embedding"] = _empty_embedding(config["class_embedding"])
            weights["class_embedding"] = load_file(folder / "class_embedding.safetensors")
        for name, network in networks.items():
            filled(network, weights[name])
        return cls(
            **networks,
            schedule=NoiseSchedule.from_dict(config["schedule"]),
            num_timesteps=config["num_timesteps"],
            scale_factor=config["scale_factor"],
            t_eps=config["t_eps"],
            guidance_scale=config["guidance_scale"],
        )


def build_latent_teacher(
    checkpoint: Checkpoint,
    *,
    latent_size: int = 64,
    use_ema: bool | None = None,
    num_heads: int | None = None,
    num_head_channels: int | None = None,
    text_heads: int | None = None,
    scale_factor: float | None = None,
    alphas_cumprod: Tensor | Sequence[float] | None = None,
    **options: Any,
) -> LatentTeacher:
    """Build the teacher of a sorted checkpoint; arguments as for `load_checkpoint`."""
    unconditional = checkpoint.model_type == "ldm-unconditional"
    decoder = checkpoint.first_stage
    if not decoder:
        raise ValueError("it holds no first stage (first_stage_model.*); pass its checkpoint as first_stage")
    unet_weights = checkpoint.denoiser_weights(use_ema, averaged_by_default=unconditional)
    heads = checkpoint.heads(num_heads=num_heads, num_head_channels=num_head_channels, text_heads=text_heads)
    unet_class = "UNet2DModel" if unconditional else "UNet2DConditionModel"
    describe = architecture.unconditional_unet if unconditional else architecture.conditional_unet
    config = describe(unet_weights, latent_size, **heads)
    scale_factor = checkpoint.scale_factor(scale_factor, 1.0)
    decoder_config = architecture.vq_first_stage(decoder, scale_factor, latent_size)
    table = checkpoint.alphas_cumprod(alphas_cumprod)
    return LatentTeacher(
        build_unet(unet_class, config, unet_weights),
        build_first_stage("VQModel", decoder_config, decoder),
        None if unconditional else _class_embedding(checkpoint.condition, config["cross_attention_dim"]),
        schedule=NoiseSchedule.vp_discrete(table),
        num_timesteps=table.numel(),
        scale_factor=scale_factor,
        **options,
    )


def _class_embedding(weights: dict[str, Tensor], width: int) -> nn.Embedding:
    if len(weights) > 1:
        raise ValueError(f"its class embedding is of another type: it has {listed(weights)}")
    weight = weights["embedding.weight"]
    if weight.ndim != 2 or weight.shape[1] != width:
        raise ValueError(
            f"its class embedding has the shape {tuple(weight.shape)}, but its network takes {width} numbers"
        )
    return filled(_empty_embedding(weight.shape), {"weight": weight})


def _empty_embedding(shape: Sequence[int]) -> nn.Embedding:
    rows, width = shape
    return nn.Embedding(rows, width, device="meta")
