"""CompVis checkpoint files, read safely and sorted into the networks that they hold."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gas_ext.safe_pickle import check_sharing, read_torch_archive
from gas_ext.schedules import NoiseSchedule

# Attention heads, or channels of one, of the published models; the weights do not state them.
_HEADS = {
    "ldm-unconditional": {"num_head_channels": 32},
    "ldm-class": {"num_heads": 1},
    "stable-diffusion": {"num_heads": 8, "text_heads": 12},
}
_OPTIONS = {"num_heads": "--heads", "num_head_channels": "--head-channels", "text_heads": "--text-heads"}

_UNET = "model.diffusion_model."
_EMA = "model_ema."
_FIRST_STAGE = "first_stage_model."
_CONDITION = "cond_stage_model."
_BUFFERS = ("alphas_cumprod", "scale_factor")

# Ignored: what follows from alphas_cumprod, bookkeeping of training, losses with their discriminators, and
# position numbers 0, 1, 2, ...
_IGNORED = re.compile(
    r"(betas|alphas_cumprod_prev|sqrt_\w+|log_one_minus_alphas_cumprod|posterior_\w+|lvlb_weights|logvar"
    r"|model_ema\.(decay|num_updates)"
    r"|first_stage_model\.(loss|model_ema)\..*"
    r"|cond_stage_model\.transformer\.(text_model\.)?embeddings\.position_ids)"
)
_IGNORED_IN_FIRST_STAGE = re.compile(r"(loss|model_ema)\..*")


@dataclass
class Checkpoint:
    """The weights of one checkpoint under the names that they have inside their networks.

    `model_type` is one of the results of `identify_checkpoint`; `ema` are averages of the weights of `unet`;
    `buffers` may hold "alphas_cumprod" and "scale_factor". All but `unet` may be empty.
    """

    model_type: str
    unet: dict[str, Tensor] = field(default_factory=dict)
    ema: dict[str, Tensor] = field(default_factory=dict)
    first_stage: dict[str, Tensor] = field(default_factory=dict)
    condition: dict[str, Tensor] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)

    def denoiser_weights(self, use_ema: bool | None, averaged_by_default: bool) -> dict[str, Tensor]:
        """Return the denoising network's weights: averaged or not, or (None) as published for the model."""
        if use_ema is None:
            use_ema = averaged_by_default and bool(self.ema)
        if use_ema and not self.ema:
            raise ValueError("it holds no averaged weights (model_ema.*), so use_ema=True is impossible")
        return self.ema if use_ema else self.unet

    def heads(self, **given: int | None) -> dict[str, int]:
        """Return the counts of attention heads of this model; a warning names those assumed."""
        known = _HEADS[self.model_type]
        for name in given.keys() - known.keys():
            if given[name] is not None:
                raise ValueError(
                    f"it is of type {self.model_type}, whose attention is described by {', '.join(known)}, "
                    f"not by {name} ({_OPTIONS[name]})"
                )
        counts = {name: given.get(name) for name in known}
        missing = [name for name, count in counts.items() if count is None]
        if missing:
            assumed = ", ".join(f"{name} = {known[name]} ({_OPTIONS[name]})" for name in missing)
            warnings.warn(
                f"The checkpoint does not state its attention heads: {assumed} assumed, as in the published "
                "models; give other values if it was trained with those.",
                stacklevel=4,
            )
        return {name: known[name] if count is None else count for name, count in counts.items()}

    def alphas_cumprod(self, given: Tensor | Sequence[float] | None) -> Tensor:
        """Return the given table, else the file's own, in float64."""
        if given is None and "alphas_cumprod" not in self.buffers:
            raise ValueError("it holds no noise schedule (alphas_cumprod); pass alphas_cumprod")
        if isinstance(given, list | tuple):
            given = torch.tensor(given, dtype=torch.float64)  # as exact as Python's numbers
        table = self.buffers["alphas_cumprod"] if given is None else torch.as_tensor(given)
        if table.dtype not in (torch.float32, torch.float64):  # as in files that were halved in size
            raise ValueError(
                f"its noise schedule is rounded to {table.dtype}; pass alphas_cumprod in float32"
            )
        table = table.to(torch.float64)
        NoiseSchedule.vp_discrete(table)  # raises if it is not a schedule
        return table

    def scale_factor(self, given: float | None, default: float) -> float:
        """Return the given factor of the latents, else the file's own, else the default."""
        if given is None and "scale_factor" in self.buffers:
            given = self.buffers["scale_factor"].item()
        return default if given is None else float(given)


def identify_checkpoint(keys: Iterable[str]) -> str:
    """Return which model a checkpoint holds, from the names of the tensors in its "state_dict".

    Returns
    -------
    str
        "ldm-unconditional" (as for LSUN), "ldm-class" (class-conditional, as for ImageNet) or
        "stable-diffusion" (version 1).

    Raises
    ------
    ValueError
        If it is none of these.

    Examples
    --------
    >>> identify_checkpoint(["model.diffusion_model.out.2.bias", "cond_stage_model.embedding.weight"])
    'ldm-class'
    """
    keys = [str(key) for key in keys]
    if not any(key.startswith(_UNET) for key in keys):
        raise ValueError(
            f"it is not a checkpoint of latent diffusion or Stable Diffusion: it has {listed(keys)}, but no "
            f"{_UNET}*"
        )
    conditions = [key for key in keys if key.startswith(_CONDITION)]
    if any(key.endswith(".embeddings.token_embedding.weight") for key in conditions):
        return "stable-diffusion"
    if f"{_CONDITION}embedding.weight" in conditions:
        return "ldm-class"
    if not conditions and not any("transformer_blocks" in key for key in keys):
        return "ldm-unconditional"
    raise ValueError(
        "its network takes conditions of an unknown type, neither class labels nor the CLIP text of Stable "
        f"Diffusion 1: it has {listed(conditions)}"
    )


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the tensors of a .ckpt or .safetensors file by name; they share memory with the mapped file."""
    path = Path(path)
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path}.")
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or of another format: {error}; get a fresh copy.") from error
    content = read_torch_archive(path)
    if isinstance(content, dict):
        content = content.get("state_dict", content)
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        raise ValueError(f"{path} is not a checkpoint: it has no 'state_dict' of named tensors.")
    try:
        check_sharing(content.values())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; get a fresh copy.") from error
    return content


def sort_checkpoint(tensors: Mapping[str, Tensor]) -> Checkpoint:
    """Sort the tensors of a file into networks; ValueError if the model or a tensor is unknown."""
    checkpoint = Checkpoint(identify_checkpoint(tensors))
    averages: dict[str, Tensor] = {}
    parts = {
        _UNET: checkpoint.unet,
        _EMA: averages,
        _FIRST_STAGE: checkpoint.first_stage,
        _CONDITION: checkpoint.condition,
    }
    unexplained = []
    for key, tensor in tensors.items():
        if _IGNORED.fullmatch(key):
            continue
        prefix = next((prefix for prefix in parts if key.startswith(prefix)), None)
        if prefix is not None:
            parts[prefix][key.removeprefix(prefix)] = tensor
        elif key in _BUFFERS:
            checkpoint.buffers[key] = tensor
        else:
            unexplained.append(key)
    if averages:
        checkpoint.ema = _averaged(averages, checkpoint.unet)
        unexplained += [f"{_EMA}{key}" for key in averages]
    if unexplained:
        raise ValueError(f"it has unknown tensors: {listed(unexplained)}")
    return checkpoint


def _averaged(averages: dict[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pop the averages and return them under the names of the weights; the file's names have no dots."""
    found = {}
    for key in weights:
        flat = "diffusion_model" + key.replace(".", "")
        if flat not in averages:
            raise ValueError(f"it has averaged weights, but not {_EMA}{flat}")
        found[key] = averages.pop(flat)
    return found


def first_stage_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the autoencoder in the tensors of a separate file or of a whole checkpoint."""
    whole = {key: tensor for key, tensor in tensors.items() if key.startswith(_FIRST_STAGE)} or tensors
    bare = {key.removeprefix(_FIRST_STAGE): tensor for key, tensor in whole.items()}
    return {key: tensor for key, tensor in bare.items() if not _IGNORED_IN_FIRST_STAGE.fullmatch(key)}


def listed(keys: Iterable[str]) -> str:
    """Return the first few keys, and how many more there are."""
    keys = sorted(keys)
    shown = ", ".join(keys[:3]) or "nothing"
    return f"{shown} and {len(keys) - 3} more" if len(keys) > 3 else shown
