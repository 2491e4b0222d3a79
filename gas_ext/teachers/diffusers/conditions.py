"""Prompts as the tensors that text-conditional networks take, encoded by the pipelines of diffusers.

An encoder returns a dict of tensors whose first dimension is the batch, so that guidance can join two of them
and a data set can be split. `complete` adds what is the same for all samples: sizes, distilled guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class PromptOptions:
    """What encoding depends on, apart from the prompts: see `from_diffusers`; `image_size` is decoded."""

    image_size: tuple[int, int]
    distilled_guidance: float = 3.5
    max_sequence_length: int | None = None

    def sequence_length(self) -> dict[str, int]:
        """Return the keyword argument of the pipelines with T5, if it is set."""
        return {} if self.max_sequence_length is None else {"max_sequence_length": self.max_sequence_length}


Tensors = dict[str, Tensor]
Rows = dict[str, list[float] | float]  # what is the same for all samples
Encoder = Callable[[Any, list[str], torch.device, PromptOptions], Tensors]
Constants = Callable[[PromptOptions], Rows]


def encode_clip(pipeline: Any, prompts: list[str], device: torch.device, options: PromptOptions) -> Tensors:
    """Stable Diffusion 1 and 2, and text to video: the hidden states of one CLIP encoder."""
    hidden, _ = pipeline.encode_prompt(prompts, device, 1, False)
    return {"encoder_hidden_states": hidden}


def encode_sdxl(pipeline: Any, prompts: list[str], device: torch.device, options: PromptOptions) -> Tensors:
    """SDXL: the hidden states of two CLIP encoders side by side, and the second one's pooled output."""
    hidden, _, pooled, _ = pipeline.encode_prompt(
        prompts, device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    return {"encoder_hidden_states": hidden, "text_embeds": pooled}


def size_conditions(options: PromptOptions) -> Rows:
    """SDXL: original size, crop and target size; here an image that was never cropped or resized."""
    height, width = options.image_size
    return {"time_ids": [height, width, 0, 0, height, width]}


def encode_sd3(pipeline: Any, prompts: list[str], device: torch.device, options: PromptOptions) -> Tensors:
    """SD3: two CLIP encoders and T5 one after the other, and the pooled outputs of CLIP."""
    hidden, _, pooled, _ = pipeline.encode_prompt(
        prompts, None, None, device, 1, False, **options.sequence_length()
    )
    return {"encoder_hidden_states": hidden, "pooled_projections": pooled}


def encode_flux(pipeline: Any, prompts: list[str], device: torch.device, options: PromptOptions) -> Tensors:
    """FLUX: the hidden states of T5 and the pooled output of CLIP."""
    hidden, pooled, _ = pipeline.encode_prompt(prompts, None, device, 1, **options.sequence_length())
    return {"encoder_hidden_states": hidden, "pooled_projections": pooled}


def distilled_guidance(options: PromptOptions) -> Rows:
    """FLUX.1-dev: the guidance scale, which was distilled into one evaluation per step."""
    return {"guidance": options.distilled_guidance}


def complete(
    condition: Mapping[str, Any], keys: tuple[str, ...], constants: Rows, name: str, device: torch.device
) -> Tensors:
    """Check the tensors of an encoded condition and add missing constants; ValueError if they do not fit."""
    required = set(keys) - set(constants)
    if not required <= set(condition) <= set(keys):
        raise ValueError(
            f"An encoded condition of {name} holds {', '.join(sorted(keys))}, but got "
            f"{', '.join(sorted(map(str, condition))) or 'nothing'}."
        )
    tensors = {}
    for key, value in condition.items():
        if not isinstance(value, Tensor) or value.ndim == 0:
            raise ValueError(
                f"The condition {key!r} of {name} must be a tensor whose first dimension is the batch."
            )
        tensors[key] = value.to(device)
    batches = {key: len(value) for key, value in tensors.items()}
    if len(set(batches.values())) != 1:
        raise ValueError(f"The tensors of a condition of {name} differ in their first dimension: {batches}.")
    batch = next(iter(batches.values()))
    for key in constants.keys() - tensors.keys():
        value = torch.tensor(constants[key], dtype=torch.float32, device=device)
        tensors[key] = value.expand(batch, *value.shape).clone()
    return {key: tensors[key] for key in keys}
