"""Any model of diffusers as a teacher."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gas_ext.denoisers import Condition, Denoiser, per_sample
from gas_ext.teachers.defaults import plain_defaults
from gas_ext.teachers.diffusers.conditions import PromptOptions, complete
from gas_ext.teachers.diffusers.files import load_model, load_parts, save_parts
from gas_ext.teachers.diffusers.networks import NetworkInterface, interface_of
from gas_ext.teachers.diffusers.parts import Parts, decode_latents, missing_for_prompts, parts_of
from gas_ext.teachers.diffusers.schedules import read_scheduler


@plain_defaults()
def from_diffusers(
    model: Any,
    *,
    scheduler: Any = None,
    vae: Any = None,
    name: str | None = None,
    guidance_scale: float | None = None,
    sample_shape: Sequence[int] | None = None,
    num_classes: int | None = None,
    t_eps: float | None = None,
    dtype: torch.dtype | None = None,
    distilled_guidance: float = 3.5,
    max_sequence_length: int | None = None,
    revision: str | None = None,
    variant: str | None = None,
) -> DiffusersTeacher:
    """Return a diffusers pipeline or network as a teacher: frozen, in evaluation mode, on its device.

    Parameters
    ----------
    model : DiffusionPipeline, ModelMixin, str or path
        A pipeline, a network (with a scheduler), a folder with either, or a name on the hub ("owner/name").
        Loading a folder never uses the internet. Weights are read from complete safetensors only, and no code
        that comes with them is run. The modules are used in place, frozen, without safety checkers and image
        encoders.
    scheduler : SchedulerMixin, optional
        For a network: the one of its training. For a pipeline: replaces its own.
    vae : AutoencoderKL or VQModel, optional
        For a network on latents: decodes them.
    name : str, optional
        Identity of the teacher. Default: the name of the folder or repository.
    guidance_scale : float, optional
        Default guidance scale of sampling. Default: that of the pipeline's call.
    sample_shape : sequence of int, optional
        Shape of one state (a latent, if there is a VAE). Default: the network's; many networks also take
        other sizes.
    num_classes : int, optional
        For class-conditional networks: number of classes. If it is one less than the network has rows, the
        last row means "no label"; guidance needs such a row.
    t_eps : float, optional
        End of sampling. Default: 1/N for a scheduler over N noise levels, which is the network's smallest;
        1e-3 for flow matching and EDM.
    dtype : torch.dtype, optional
        Convert everything to this dtype. Default: modules stay as they are, files are loaded in float32.
        States keep the dtype of the noise.
    distilled_guidance : float
        FLUX.1-dev: the guidance scale it is conditioned on, at one evaluation per step. Default: 3.5.
    max_sequence_length : int, optional
        SD3 and FLUX: tokens of T5. Default: that of the pipeline.
    revision : str, optional
        Branch, tag or commit of a name on the hub.
    variant : str, optional
        Weights to load from a folder or the hub, e.g. "fp16" for ``*.fp16.safetensors``; parts without that
        variant are loaded as they are. Independent of `dtype`.

    Raises
    ------
    ValueError
        If there is no such model, or its network, scheduler or inputs are not supported.
    TypeError
        If it is not a model of diffusers, or `scheduler` is not a scheduler.
    ImportError
        If diffusers is not installed.

    Examples
    --------
    >>> from diffusers import DDIMScheduler, UNet2DModel
    >>> network = UNet2DModel(8, 1, 1, block_out_channels=(32, 32),
    ...                       down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
    >>> teacher = from_diffusers(network, scheduler=DDIMScheduler(prediction_type="v_prediction"))
    >>> teacher.sample_shape, teacher.prediction_type
    ((1, 8, 8), 'v_prediction')
    >>> teacher(torch.zeros(2, 1, 8, 8), torch.tensor(0.5)).shape
    torch.Size([2, 1, 8, 8])
    """
    if isinstance(model, str | os.PathLike):
        name = name or Path(os.path.abspath(model)).name
        model = load_model(model, revision=revision, variant=variant, dtype=dtype or torch.float32)
    parts = parts_of(model, scheduler, vae)
    if dtype is not None:
        parts.to(dtype)
    return DiffusersTeacher(
        parts,
        name=name,
        guidance_scale=guidance_scale,
        sample_shape=sample_shape,
        num_classes=num_classes,
        t_eps=t_eps,
        distilled_guidance=distilled_guidance,
        max_sequence_length=max_sequence_length,
    )


class DiffusersTeacher(Denoiser):
    """A network of diffusers in the coordinates and the time of its scheduler's noise schedule.

    Create it with `from_diffusers`, which documents the options. Conditions are labels, prompts (a string or
    a list of them), or a dict of encoded tensors, named as the network's arguments and with the batch as
    their first dimension; None means the unconditional one. Gradients flow to x and t.

    Network times are not rounded, except by FLUX itself: it takes its time in the dtype of its weights (three
    digits in bfloat16), while all others embed it in float32.

    Attributes
    ----------
    network, vae : Module
        The predictor and the decoder (None for models of pixels or signals).
    text_encoders : ModuleList
        The encoders of `encode_condition`.
    flow_shift : float or None
        Flow models: the scheduler's shift of times for samples of this size. It is not part of the schedule:
        start a solver from it with `gas_ext.teachers.diffusers.shift_timesteps`.
    """

    family = "diffusers"

    def __init__(
        self,
        parts: Parts,
        *,
        name: str | None = None,
        guidance_scale: float | None = None,
        sample_shape: Sequence[int] | None = None,
        num_classes: int | None = None,
        t_eps: float | None = None,
        distilled_guidance: float = 3.5,
        max_sequence_length: int | None = None,
    ) -> None:
        interface = interface_of(parts.network)
        preconditioning = read_scheduler(parts.scheduler)
        if guidance_scale is None and interface.guided and parts.pipeline is not None:
            guidance_scale = _default_guidance(parts.pipeline)
        prompted = "prompt" if interface.condition_keys else "none"
        super().__init__(
            schedule=preconditioning.schedule,
            prediction_type=preconditioning.prediction_type,
            sample_shape=_sample_shape(parts.network, interface, sample_shape),
            name=name or type(parts.network).__name__,
            condition_kind="label" if interface.label_rows else prompted,
            num_classes=_num_classes(interface, num_classes),
            t_eps=preconditioning.t_eps if t_eps is None else t_eps,
            guidance_scale=guidance_scale,
        )
        self.network = parts.network
        self.vae = parts.vae
        self.text_encoders = nn.ModuleList(parts.text_encoders)
        self.parts = parts
        # Like the scripts of Stable Diffusion 1 and 2 and published results on COCO; pipelines of diffusers
        # round.
        self.truncates = type(parts.pipeline).__name__ == "StableDiffusionPipeline"
        factor = parts.latent_factor()
        height, width = self.sample_shape[-2:]
        size = (factor * height, factor * width)
        self.options = PromptOptions(size, distilled_guidance, max_sequence_length)
        tokens = self.sample_size // self.sample_shape[0] // 4  # of 2 x 2 latents in SD3 and FLUX
        shift = preconditioning.flow_shift
        self.flow_shift = None if shift is None else shift(tokens)
        self._interface, self._preconditioning = interface, preconditioning
        self._empty: dict[str, Tensor] | None = None
        self.requires_grad_(False).eval()

    def predict(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        """Evaluate the network; the state is converted to its dtype, and the output back."""
        if condition is None and self.condition_kind != "none":
            condition = self.unconditional_condition()
        condition = self._for_batch(condition, x)
        dtype, channels = self.parts.network.dtype, self.sample_shape[0]

        def network(state: Tensor, time: Tensor) -> Tensor:
            output = self._interface.call(self.network, state.to(dtype), time, condition)
            return output[:, :channels].to(x.dtype)  # a learned variance would be the second half

        return self._preconditioning(network, x, t.to(x.device, torch.float64).expand(x.shape[0]))

    @property
    def input_dtype(self) -> torch.dtype | None:
        """Dtype of the network, or None if its preconditioning scales the state in full precision first."""
        dtype: torch.dtype = self.parts.network.dtype
        return dtype if self._preconditioning.is_identity else None

    def _for_batch(self, condition: Condition, x: Tensor) -> Condition:
        """Return a condition with one entry per sample, in the dtype of the network."""
        if isinstance(condition, Mapping):
            return {name: self._for_batch(value, x) for name, value in condition.items()}
        if condition is None:
            return None
        dtype = self.parts.network.dtype if condition.is_floating_point() else condition.dtype
        return per_sample(condition.to(x.device, dtype), len(x))

    def encode_condition(self, values: Any) -> Condition:
        """Turn labels, prompts or a dict of encoded tensors into the input of `predict`.

        Parameters
        ----------
        values : optional
            None; integers (B,); a string or a sequence of B strings; or a mapping with the tensors that the
            network takes, where those that are the same for all samples may be missing.

        Raises
        ------
        ValueError
            If a label does not exist, a tensor is missing, there are no prompts, or they cannot be encoded.
        TypeError
            If a prompt is not a string.
        """
        if values is None or self.condition_kind == "none":
            return super().encode_condition(values)
        if self.condition_kind == "label":
            labels = super().encode_condition(values)
            rows = self._interface.label_rows
            # As in the base class, values on a GPU are left to the network.
            if labels.device.type == "cpu" and bool((labels == rows).any()):
                raise ValueError(f"{self.name} has no label {rows}, which would mean no label.")
            return labels
        if isinstance(values, Mapping):
            return self._completed(values)
        prompts = [values] if isinstance(values, str) else list(values)
        if not prompts:
            raise ValueError(f"{self.name} got an empty list of prompts; give one per sample.")
        if not all(isinstance(prompt, str) for prompt in prompts):
            raise TypeError(
                f"Prompts of {self.name} must be strings, or a dict of tensors named "
                f"{', '.join(self._interface.condition_keys)}."
            )
        return self._completed(self._encoded(prompts))

    def _encoded(self, prompts: list[str]) -> dict[str, Tensor]:
        missing = missing_for_prompts(self.parts.pipeline)
        if missing is not None or self._interface.encode is None:
            again = "import it again with --tokenizer, or " if missing == "no tokenizer" else ""
            raise ValueError(
                f"{self.name} has {missing}, so it cannot encode prompts; {again}pass encoded conditions, a "
                f"dict of tensors named {', '.join(self._interface.condition_keys)}."
            )
        with torch.no_grad():
            return self._interface.encode(self.parts.pipeline, prompts, self.device, self.options)

    def _completed(self, tensors: Mapping[str, Any]) -> dict[str, Tensor]:
        interface = self._interface
        constants = interface.constants(self.options) if interface.constants else {}
        return complete(tensors, interface.condition_keys, constants, self.name, self.device)

    def unconditional_condition(self) -> Condition:
        """Return "no label", or the encoded empty prompt (zeros if the pipeline uses these).

        Raises
        ------
        ValueError
            If the network has no row for "no label", or prompts cannot be encoded.
        """
        if self.condition_kind == "label":
            rows = self._interface.label_rows or 0
            if self.num_classes == rows:
                raise ValueError(
                    f"{self.name} needs a label for each sample and has none that means 'no label'; if its "
                    f"last one does, pass num_classes={rows - 1}."
                )
            return super().unconditional_condition()
        if self.condition_kind == "prompt":
            if self._empty is None:
                tensors = self._encoded([""])
                if self.parts.pipeline.config.get("force_zeros_for_empty_prompt"):
                    tensors = {name: torch.zeros_like(value) for name, value in tensors.items()}
                self._empty = self._completed(tensors)
            return {name: value.to(self.device) for name, value in self._empty.items()}
        return None

    def decode(self, samples: Tensor) -> Tensor:
        """Decode latents to images or videos in [-1, 1], not clamped; pixels are returned as they are."""
        if self.vae is None:
            return samples
        self.check_channels(samples)
        return decode_latents(self.vae, samples)

    def save_weights(self, folder: Path) -> dict[str, Any]:
        """Write all parts as diffusers does, in safetensors; return the options."""
        return {
            "parts": save_parts(self.parts, folder),
            "sample_shape": list(self.sample_shape),
            "num_classes": self.num_classes,
            "t_eps": self.t_eps,
            "guidance_scale": self.guidance_scale,
            "distilled_guidance": self.options.distilled_guidance,
            "max_sequence_length": self.options.max_sequence_length,
        }

    @classmethod
    def load_weights(cls, folder: Path, config: dict[str, Any]) -> DiffusersTeacher:
        """Rebuild what `save_weights` wrote, from local files alone."""
        options = {name: value for name, value in config.items() if name != "parts"}
        return cls(load_parts(folder, config["parts"]), **options)


def _default_guidance(pipeline: Any) -> float | None:
    """Return the guidance scale that a pipeline is called with by default."""
    parameter = inspect.signature(type(pipeline).__call__).parameters.get("guidance_scale")
    default = None if parameter is None else parameter.default
    return float(default) if isinstance(default, int | float) else None


def _sample_shape(network: Any, interface: NetworkInterface, given: Sequence[int] | None) -> tuple[int, ...]:
    """Return the shape of one state, checked against the channels of the network."""
    name, config = type(network).__name__, network.config
    inputs = config.get("in_channels", interface.channels)
    outputs = config.get("out_channels") or inputs
    if outputs not in (inputs, 2 * inputs):
        raise ValueError(
            f"This {name} takes {inputs} channels and returns {outputs}, so it has further inputs (a mask, "
            "an image), which are not supported; use Denoiser.from_callable."
        )
    if given is None:
        if interface.size is None:
            raise ValueError(
                f"This {name} does not state the size of its samples; give sample_shape="
                f"({interface.channels}, ...)."
            )
        return interface.channels, *interface.size
    if len(given) < 2 or given[0] != interface.channels:
        raise ValueError(
            f"sample_shape is {tuple(given)}, but samples of this {name} have {interface.channels} channels: "
            f"({interface.channels}, ...)."
        )
    return tuple(given)


def _num_classes(interface: NetworkInterface, given: int | None) -> int | None:
    rows = interface.label_rows
    if rows is None:
        if given is not None:
            raise ValueError(f"num_classes is {given}, but the network takes no labels; leave it out.")
        return None
    classes = (rows - 1 if interface.null_label else rows) if given is None else given
    if classes not in (rows, rows - 1):
        raise ValueError(
            f"num_classes is {given}, but the network has {rows} rows for labels: give {rows}, or {rows - 1} "
            "if the last one means no label."
        )
    return classes
