"""Loading CompVis checkpoints; nothing in the files is run.

The networks are read off the weights. What these do not tell has an argument, with the value of the published
models as its default. Files are mapped, and only the weights that are used are copied out of them.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from gas_ext.denoisers import Denoiser
from gas_ext.teachers.defaults import plain_defaults
from gas_ext.teachers.diffusers.teacher import from_diffusers
from gas_ext.teachers.ldm.checkpoint import (
    Checkpoint,
    first_stage_weights,
    read_tensors,
    sort_checkpoint,
)
from gas_ext.teachers.ldm.stable_diffusion import build_pipeline, load_tokenizer
from gas_ext.teachers.ldm.teacher import LatentTeacher, build_latent_teacher

PathLike = str | os.PathLike[str]


@plain_defaults()
def load_checkpoint(
    path: PathLike,
    *,
    name: str | None = None,
    first_stage: PathLike | None = None,
    tokenizer: Any = None,
    **options: Any,
) -> Denoiser:
    """Load a checkpoint of any known kind as a teacher.

    Parameters
    ----------
    path : path
        A .ckpt of PyTorch Lightning (what stands in it besides weights is passed over), or a single-file
        .safetensors.
    name : str, optional
        Identity of the teacher; the file's name if not given.
    first_stage : path, optional
        The checkpoint of the autoencoder, where `path` does not hold it, or not the wanted one.
    tokenizer : path or str, optional
        Stable Diffusion: a folder with the files of the tokenizer, or its name on the hub
        ("openai/clip-vit-large-patch14"). Without it there are no prompts, only conditions that are encoded
        already.
    **options
        As for `load_ldm_checkpoint` or `load_stable_diffusion_checkpoint`; None is left out.

    Raises
    ------
    ValueError
        If a file is damaged, refused (`gas_ext.safe_pickle`), holds another kind of model, or does not
        convert completely.
    FileNotFoundError
        If there is no such file.
    ImportError
        If diffusers (or transformers, for Stable Diffusion) is not installed.
    """
    checkpoint = _read(path, first_stage)
    options = {key: value for key, value in options.items() if value is not None}
    name = name or Path(path).stem
    if checkpoint.kind == "stable-diffusion":
        own = {key: options.pop(key) for key in ("guidance_scale", "t_eps") if key in options}
        loaded_tokenizer = load_tokenizer(tokenizer)
        if tokenizer is None:
            warnings.warn(
                f"{path} holds no tokenizer, so that the teacher takes no prompts: give tokenizer (gas-ext "
                "import --tokenizer), a folder with the files of openai/clip-vit-large-patch14.",
                stacklevel=2,
            )
        with _naming(path):
            pipeline = build_pipeline(checkpoint, tokenizer=loaded_tokenizer, **options)
        return from_diffusers(pipeline, name=name, **own)
    with _naming(path):
        if tokenizer is not None:
            raise ValueError("it takes no prompts; leave the tokenizer out")
        return build_latent_teacher(checkpoint, name=name, **options)


def load_ldm_checkpoint(
    path: PathLike,
    *,
    name: str | None = None,
    latent_size: int = 64,
    use_ema: bool | None = None,
    first_stage: PathLike | None = None,
    num_heads: int | None = None,
    num_head_channels: int | None = None,
    scale_factor: float | None = None,
    alphas_cumprod: Tensor | Sequence[float] | None = None,
    t_eps: float = 1e-3,
    guidance_scale: float | None = None,
) -> LatentTeacher:
    """Load a latent diffusion model with a VQ first stage, unconditional or class-conditional.

    Parameters
    ----------
    path, name, first_stage
        As for `load_checkpoint`.
    latent_size : int
        Height and width of the latents.
    use_ema : bool, optional
        Whether to use the averaged weights. If not given, unconditional models use them where they are in the
        file, class-conditional ones do not, as published.
    num_heads : int, optional
        Attention heads of a class-conditional model; 1 if not given, as for ImageNet.
    num_head_channels : int, optional
        Channels of an attention head of an unconditional model; 32 if not given, as for LSUN Bedroom,
        CelebA-HQ and FFHQ.
    scale_factor : float, optional
        Latents are those of the autoencoder times this. If not given, the file's, else 1.
    alphas_cumprod : sequence of float, optional
        The noise schedule, where the file does not hold it, or not the wanted one.
    t_eps, guidance_scale
        As for `Denoiser`.

    Raises
    ------
    ValueError, FileNotFoundError, ImportError
        See `load_checkpoint`.
    """
    checkpoint = _read(path, first_stage)
    with _naming(path):
        return build_latent_teacher(
            checkpoint,
            latent_size=latent_size,
            use_ema=use_ema,
            num_heads=num_heads,
            num_head_channels=num_head_channels,
            scale_factor=scale_factor,
            alphas_cumprod=alphas_cumprod,
            name=name or Path(path).stem,
            t_eps=t_eps,
            guidance_scale=guidance_scale,
        )


def load_stable_diffusion_checkpoint(
    path: PathLike,
    *,
    name: str | None = None,
    tokenizer: Any = None,
    guidance_scale: float | None = None,
    t_eps: float | None = None,
    **options: Any,
) -> Denoiser:
    """Load a Stable Diffusion 1.x checkpoint as a teacher of the family "diffusers".

    Parameters
    ----------
    path, name, tokenizer
        As for `load_checkpoint`.
    guidance_scale, t_eps
        As for `Denoiser`; 7.5 and 1/1000 if not given.
    **options
        As for `load_stable_diffusion_pipeline`.

    Raises
    ------
    ValueError, FileNotFoundError, ImportError
        See `load_checkpoint`.
    """
    pipeline = load_stable_diffusion_pipeline(path, tokenizer=tokenizer, **options)
    return from_diffusers(pipeline, name=name or Path(path).stem, guidance_scale=guidance_scale, t_eps=t_eps)


def load_stable_diffusion_pipeline(
    path: PathLike,
    *,
    tokenizer: Any = None,
    first_stage: PathLike | None = None,
    latent_size: int = 64,
    use_ema: bool | None = None,
    num_heads: int | None = None,
    text_heads: int | None = None,
    scale_factor: float | None = None,
    alphas_cumprod: Tensor | Sequence[float] | None = None,
) -> Any:
    """Load a Stable Diffusion 1.x checkpoint as a diffusers pipeline, without a safety checker.

    Parameters
    ----------
    path, tokenizer, first_stage
        As for `load_checkpoint`; a tokenizer itself is taken too.
    latent_size : int
        Height and width of the latents; images are eight times as large.
    use_ema : bool, optional
        Use the averaged weights of the denoising network; if not given, the plain ones, as published.
    num_heads, text_heads : int, optional
        Attention heads of the denoising network and of the text encoder; 8 and 12 if not given.
    scale_factor : float, optional
        Latents are those of the autoencoder times this. If not given, the file's, else 0.18215.
    alphas_cumprod : sequence of float, optional
        The noise schedule, where the file does not hold it, or not the wanted one.

    Returns
    -------
    StableDiffusionPipeline
        Its DDIM scheduler has the checkpoint's own noise schedule.

    Raises
    ------
    ValueError, FileNotFoundError, ImportError
        See `load_checkpoint`.
    """
    checkpoint, loaded_tokenizer = _read(path, first_stage), load_tokenizer(tokenizer)
    with _naming(path):
        return build_pipeline(
            checkpoint,
            tokenizer=loaded_tokenizer,
            latent_size=latent_size,
            use_ema=use_ema,
            num_heads=num_heads,
            text_heads=text_heads,
            scale_factor=scale_factor,
            alphas_cumprod=alphas_cumprod,
        )


def _read(path: PathLike, first_stage: PathLike | None) -> Checkpoint:
    tensors = read_tensors(path)
    with _naming(path):
        checkpoint = sort_checkpoint(tensors)
    if first_stage is not None:
        checkpoint.first_stage = first_stage_weights(read_tensors(first_stage))
    return checkpoint


@contextmanager
def _naming(path: PathLike) -> Iterator[None]:
    """Put the file's name before what is wrong with it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {str(error).rstrip('.')}.") from error
