"""Stable Diffusion 1.x checkpoints as diffusers pipelines, and so as teachers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gas_ext._utils.optional import require
from gas_ext._utils.records import reason_of
from gas_ext.teachers.ldm import architecture
from gas_ext.teachers.ldm.checkpoint import Checkpoint
from gas_ext.teachers.ldm.convert import EXTRA, build_first_stage, build_text_encoder, build_unet

# Published conventions, which the weights do not state.
SCALE_FACTOR = 0.18215
PROMPT_TOKENS = 77


def build_pipeline(
    checkpoint: Checkpoint,
    *,
    tokenizer: Any = None,
    latent_size: int = 64,
    use_ema: bool | None = None,
    num_heads: int | None = None,
    num_head_channels: int | None = None,
    text_heads: int | None = None,
    scale_factor: float | None = None,
    alphas_cumprod: Tensor | Sequence[float] | None = None,
) -> Any:
    """Build the pipeline of a sorted checkpoint; arguments as for `load_checkpoint`."""
    if checkpoint.model_type != "stable-diffusion":
        raise ValueError("it is another latent diffusion model; use load_checkpoint")
    if not checkpoint.first_stage:
        raise ValueError("it holds no autoencoder (first_stage_model.*); pass its checkpoint as first_stage")
    weights = checkpoint.denoiser_weights(use_ema, averaged_by_default=False)
    heads = checkpoint.heads(num_heads=num_heads, num_head_channels=num_head_channels, text_heads=text_heads)
    unet_config = architecture.conditional_unet(weights, latent_size, heads["num_heads"])
    if unet_config["in_channels"] != unet_config["out_channels"]:
        raise ValueError(
            f"its network maps {unet_config['in_channels']} channels to {unet_config['out_channels']}, as "
            "those for inpainting do; use a text-to-image checkpoint"
        )
    text = {
        key.removeprefix("transformer.").removeprefix("text_model."): tensor
        for key, tensor in checkpoint.condition.items()
    }
    first_stage = checkpoint.first_stage
    scale_factor = checkpoint.scale_factor(scale_factor, SCALE_FACTOR)
    vae_config = architecture.first_stage(first_stage, scale_factor, latent_size)
    return require("diffusers", EXTRA).StableDiffusionPipeline(
        vae=build_first_stage("AutoencoderKL", vae_config, first_stage),
        text_encoder=build_text_encoder(architecture.clip_text(text, heads["text_heads"]), text),
        tokenizer=tokenizer,
        unet=build_unet("UNet2DConditionModel", unet_config, weights),
        scheduler=_scheduler_of(checkpoint.alphas_cumprod(alphas_cumprod)),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _scheduler_of(alphas_cumprod: Tensor) -> Any:
    """Return the DDIM scheduler of a network trained to predict epsilon with this float64 table.

    Its trained_betas are 1 - alphas_cumprod[k] / alphas_cumprod[k - 1] in float64, which give the table back.
    The scheduler itself rounds them to float32 first, so its table is replaced.
    """
    previous = torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod[:-1]])
    scheduler = require("diffusers", EXTRA).DDIMScheduler(
        num_train_timesteps=alphas_cumprod.numel(),
        trained_betas=(1.0 - alphas_cumprod / previous).tolist(),
        prediction_type="epsilon",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    scheduler.alphas_cumprod = alphas_cumprod.float()
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    return scheduler


def load_tokenizer(source: Any) -> Any:
    """Load the CLIP tokenizer from a folder, or from the hub by name; None and tokenizers pass through."""
    if not isinstance(source, (str, os.PathLike)):
        return source
    tokenizers = require("transformers", EXTRA).CLIPTokenizer
    try:
        return tokenizers.from_pretrained(os.fspath(source), model_max_length=PROMPT_TOKENS)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{source} holds no tokenizer; give a folder with the files of openai/clip-vit-large-patch14 "
            f"({reason_of(error, 200)})."
        ) from error
