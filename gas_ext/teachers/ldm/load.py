"""Loading CompVis checkpoints; nothing in the files is run.

The networks are read off the weights. What these do not state is an option whose default is the value of the
published models. Files are mapped, and only the weights that are used are copied out of them.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
from gas_ext.teachers.ldm.teacher import build_latent_teacher

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
    """Load a checkpoint of latent diffusion (VQ first stage) or Stable Diffusion 1.x as a teacher.

    Parameters
    ----------
    path : path
        A .ckpt of PyTorch Lightning, of which only the weights are used, or a single-file .safetensors.
    name : str, optional
        Identity of the teacher. Default: the file's name.
    first_stage : path, optional
        A separate checkpoint of the autoencoder, used instead of the one in `path`.
    tokenizer : path or str, optional
        Stable Diffusion: a folder with the files of the tokenizer, or its name on the hub
        ("openai/clip-vit-large-patch14"). Without it, the teacher takes encoded conditions but no prompts.
    **options
        None means the default.

        ``latent_size`` (int): height and width of the latents. Default: 64.

        ``use_ema`` (bool): use the averaged weights. Default, as published: if present for unconditional
        models, else False.

        ``num_heads`` (int): attention heads of the denoising network, class-conditional (default 1, as for
        ImageNet) or of Stable Diffusion (default 8).

        ``num_head_channels`` (int): channels of an attention head of an unconditional model. Default: 32, as
        for LSUN Bedroom, CelebA-HQ and FFHQ.

        ``text_heads`` (int): attention heads of Stable Diffusion's text encoder. Default: 12.

        ``scale_factor`` (float): factor of the autoencoder's latents. Default: the file's, else 0.18215 for
        Stable Diffusion and 1 for others.

        ``alphas_cumprod`` (sequence of float): the noise schedule. Default: the file's.

        ``t_eps``, ``guidance_scale``: as for `Denoiser`. Default: 1e-3; 7.5 for Stable Diffusion, else None.

    Raises
    ------
    ValueError
        If a file is damaged, refused (`gas_ext.safe_pickle`), holds an unsupported model, or does not
        convert completely.
    FileNotFoundError
        If there is no such file.
    ImportError
        If diffusers (or transformers, for Stable Diffusion) is not installed.
    """
    checkpoint = _read(path, first_stage)
    options = {key: value for key, value in options.items() if value is not None}
    name = name or Path(path).stem
    if checkpoint.model_type != "stable-diffusion":
        with _named(path):
            if tokenizer is not None:
                raise ValueError("it takes no prompts; leave the tokenizer out")
            return build_latent_teacher(checkpoint, name=name, **options)
    sampling = {key: options.pop(key) for key in ("guidance_scale", "t_eps") if key in options}
    if tokenizer is None:
        warnings.warn(
            f"{path} holds no tokenizer, so the teacher takes no prompts; give tokenizer (gas-ext import "
            "--tokenizer), a folder with the files of openai/clip-vit-large-patch14.",
            stacklevel=2,
        )
    tokenizer = load_tokenizer(tokenizer)
    with _named(path):
        pipeline = build_pipeline(checkpoint, tokenizer=tokenizer, **options)
    return from_diffusers(pipeline, name=name, **sampling)


def load_stable_diffusion_pipeline(
    path: PathLike, *, tokenizer: Any = None, first_stage: PathLike | None = None, **options: Any
) -> Any:
    """Load a Stable Diffusion 1.x checkpoint as a diffusers pipeline, without a safety checker.

    Arguments and errors are those of `load_checkpoint`; `tokenizer` may also be a tokenizer object. The DDIM
    scheduler has the checkpoint's own noise schedule.
    """
    checkpoint, tokenizer = _read(path, first_stage), load_tokenizer(tokenizer)
    with _named(path):
        return build_pipeline(checkpoint, tokenizer=tokenizer, **options)


def _read(path: PathLike, first_stage: PathLike | None) -> Checkpoint:
    tensors = read_tensors(path)
    with _named(path):
        checkpoint = sort_checkpoint(tensors)
    if first_stage is not None:
        checkpoint.first_stage = first_stage_weights(read_tensors(first_stage))
    return checkpoint


@contextmanager
def _named(path: PathLike) -> Iterator[None]:
    """Put the file's name in front of an error about its contents."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {str(error).rstrip('.')}.") from error
