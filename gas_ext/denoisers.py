"""One interface for every network.

A network has its own notion of time, scale and conditions. A `Denoiser` hides them: its states are
x_t = alpha(t) x_0 + sigma(t) eps of its schedule, its time is that of the schedule, and its conditions are
made from user input (labels, prompts). Sampler, trainer and data know nothing else about a model.
"""

from __future__ import annotations

import functools
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gas_ext._utils.checks import check_dense, whole_number, whole_numbers
from gas_ext._utils.torch_private import is_intercepted, is_transformed
from gas_ext.ops.fused_update import STATE_DTYPES
from gas_ext.schedules import NoiseSchedule, check_schedule
from gas_ext.solvers.coefficients import check_guidance_scale, check_prediction_type
from gas_ext.solvers.timesteps import check_interval

# What networks take with x and t: None, a tensor whose first dimension is the batch, or a dict, list or tuple
# of these.
Condition = Any
DenoiserFunction = Callable[[Tensor, Tensor, Condition], Tensor]

UNNAMED = "denoiser"  # name of a model without a name

CONDITION_KINDS = ("none", "label", "prompt", "tensor")


def per_sample(condition: Tensor, batch: int) -> Tensor:
    """Return a condition with one entry per sample (one serves all); ValueError if their numbers differ."""
    entries = condition[None] if condition.ndim == 0 else condition
    if len(entries) not in (1, batch):
        raise ValueError(
            f"Got {batch} samples and a condition of {len(entries)}; give one per sample, or one for all."
        )
    return entries.expand(batch, *entries.shape[1:])


class Denoiser(nn.Module, ABC):
    """A pretrained network in the coordinates and the time of its noise schedule.

    Subclasses implement `predict`; those with prompts also `encode_condition` and `unconditional_condition`,
    and those that work on latents also `decode`. Make one from a function with `from_callable`, or from a
    diffusers model with `gas_ext.teachers.from_diffusers`.

    Parameters
    ----------
    schedule : NoiseSchedule
        Schedule of the states x_t.
    prediction_type : str
        "epsilon", "sample", "v_prediction" or "flow_prediction"; see `GASSampler`.
    sample_shape : sequence of int
        Shape of one state, without the batch: (3, 32, 32) for an image, (2, 1000) for a signal, ...
    name : str
        Identity of the model, written into solver files and sample folders. Default: "denoiser".
    condition_kind : str
        "none" (default); "label": int64 class labels (B,); "prompt": texts, encoded into a dict of tensors;
        "tensor": anything else, passed to the network unchanged.
    num_classes : int, optional
        Required for labels, which are 0 to num_classes - 1; num_classes itself means "no label".
    t_eps : float
        Where sampling ends unless a solver sets its own t_eps. Default: 1e-3.
    guidance_scale : float, optional
        The scale that the model is usually sampled with.

    Attributes
    ----------
    evaluations : int
        Calls so far. One call on the doubled batch of classifier-free guidance counts once, as NFE does in
        the literature. Not counted inside a graph of `torch.compile`.
    weights_hash : str
        SHA-256 (hex) of the weights, where known; "" otherwise.
    truncates : bool
        Whether the pipeline of the model's published FID scores truncates images to 8 bits, as those of LDM
        and Stable Diffusion do, instead of rounding them; see `gas_ext._utils.noise.to_uint8`.

    Raises
    ------
    TypeError
        If `schedule` is not a `NoiseSchedule`.
    ValueError
        If a shape, the prediction type, the condition kind or t_eps is invalid.
    """

    family: ClassVar[str] = "custom"
    truncates: bool = False

    def __init__(
        self,
        *,
        schedule: NoiseSchedule,
        prediction_type: str,
        sample_shape: Sequence[int],
        name: str = UNNAMED,
        condition_kind: str = "none",
        num_classes: int | None = None,
        t_eps: float = 1e-3,
        guidance_scale: float | None = None,
    ) -> None:
        super().__init__()
        check_schedule(schedule)
        check_prediction_type(schedule, prediction_type)
        check_interval(schedule, 1, t_eps)
        if condition_kind not in CONDITION_KINDS:
            raise ValueError(
                f"condition_kind is {condition_kind!r}, but must be one of {', '.join(CONDITION_KINDS)}."
            )
        if (condition_kind == "label") != (num_classes is not None):
            raise ValueError(
                f"num_classes is {num_classes} for conditions of kind {condition_kind!r}; "
                "give it for labels, and only there."
            )
        self.schedule = schedule
        self.prediction_type = prediction_type
        self.sample_shape = tuple(whole_numbers("sample_shape", sample_shape))
        if any(size < 1 for size in self.sample_shape):
            raise ValueError(f"sample_shape is {self.sample_shape}, but sizes must be at least 1.")
        self.name = name
        self.condition_kind = condition_kind
        self.num_classes = None if num_classes is None else whole_number("num_classes", num_classes, 1)
        self.t_eps = t_eps
        check_guidance_scale(guidance_scale)
        self.guidance_scale = guidance_scale
        self.weights_hash = ""
        self.evaluations = 0

    @staticmethod
    def from_callable(
        function: DenoiserFunction,
        *,
        schedule: NoiseSchedule,
        prediction_type: str,
        sample_shape: Sequence[int],
        decode: Callable[[Tensor], Tensor] | None = None,
        unconditional: Condition = None,
        **options: Any,
    ) -> Denoiser:
        """Wrap function(x, t, condition) -> output.

        Parameters
        ----------
        function : callable
            x is (B, ...) in the schedule's coordinates and t a float64 0-d tensor, the schedule's time (a
            network that counts to 1000 is ``lambda x, t, c: network(x, 1000 * t, c)``). The parameters of a
            module are frozen only while a solver is sampled or learned.
        decode : callable, optional
            Maps states to images in [-1, 1]. Default: the identity.
        unconditional : optional
            The condition of guidance's other half.
        schedule, prediction_type, sample_shape, **options
            As for `Denoiser`.

        Examples
        --------
        >>> denoiser = Denoiser.from_callable(
        ...     lambda x, t, condition: -x, schedule=NoiseSchedule.flow(),
        ...     prediction_type="flow_prediction", sample_shape=(1, 64))
        >>> _ = denoiser(torch.zeros(2, 1, 64), torch.tensor(0.5))
        >>> denoiser.evaluations
        1
        """
        return _CallableDenoiser(
            function,
            decode,
            unconditional,
            schedule=schedule,
            prediction_type=prediction_type,
            sample_shape=sample_shape,
            **options,
        )

    def forward(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        """Evaluate the network once and count it; see `predict`.

        Raises
        ------
        ValueError
            If the dimensions or channels of x are not those of `sample_shape`, or the network fails on other
            sizes.
        """
        self.check_channels(x)
        if torch.compiler.is_compiling():
            return self.predict(x, t, condition)
        vars(self)["evaluations"] += 1  # a microsecond less than through nn.Module's own assignment
        try:
            return self.predict(x, t, condition)
        except torch.OutOfMemoryError:  # a RuntimeError too, but not one of the shape
            raise
        except RuntimeError as error:
            if x.shape[1:] == self.sample_shape:
                raise
            raise ValueError(
                f"{self.name} failed on states of shape {tuple(x.shape)}, while its samples have shape "
                f"{self.sample_shape}; give noise of that shape ({error})."
            ) from error

    def check_channels(self, x: Tensor) -> None:
        """Raise ValueError unless states have the dimensions and channels of samples; sizes may differ."""
        if x.ndim != 1 + len(self.sample_shape) or x.shape[1] != self.sample_shape[0]:
            raise ValueError(
                f"Got states of shape {tuple(x.shape)}, but {self.name} takes (batch, "
                f"{', '.join(map(str, self.sample_shape))}); give noise of that shape."
            )

    @abstractmethod
    def predict(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the network's output at (x, t), of the shape and dtype of x.

        Parameters
        ----------
        x : Tensor
            (B, *sample_shape) in the schedule's coordinates.
        t : Tensor
            float64, 0-d or (B,), the schedule's time.
        condition : optional
            What `encode_condition` returns, or None.
        """

    def encode_condition(self, values: Any) -> Condition:
        """Turn user input into the condition of `predict`; an encoded condition is returned unchanged.

        Parameters
        ----------
        values : optional
            None; for labels, integers or an integer tensor (B,); for other kinds, what the network takes.

        Raises
        ------
        ValueError
            If a label does not exist or is not an integer, or the model takes no such condition.
        """
        if values is None or self.condition_kind == "tensor":
            return values
        if self.condition_kind == "label":
            return self._labels(values)
        if self.condition_kind == "none":
            raise ValueError(
                f"{self.name} takes no condition, but got a {type(values).__name__}; leave it out."
            )
        raise NotImplementedError(
            f"{type(self).__name__} has prompts, so it must implement encode_condition."
        )

    def _labels(self, values: Any) -> Tensor:
        assert self.num_classes is not None
        try:
            labels = torch.as_tensor(values, device=self.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"Labels of {self.name} are {str(values)[:60]}, but must be integers; pass integers."
            ) from error
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise ValueError(f"Labels are {labels.dtype}, but must be integers; use .long().")
        lowest = highest = 0
        # Reading values of a GPU would stall it; there the network's own indexing checks them.
        if labels.is_cpu and labels.numel():
            lowest, highest = (int(value) for value in torch.aminmax(labels))
        inside = lowest >= 0 and highest <= self.num_classes
        if labels.ndim > 1 or not inside:
            raise ValueError(
                f"Labels of {self.name} are one integer per sample from 0 to {self.num_classes - 1} "
                f"({self.num_classes} for none), but got shape {tuple(labels.shape)}"
                + ("." if inside else f" with values {lowest} to {highest}.")
            )
        return labels.to(torch.int64)

    def unconditional_condition(self) -> Condition:
        """Return the condition of guidance's other half, which broadcasts over the batch, or None."""
        if self.condition_kind == "label":
            assert self.num_classes is not None
            return torch.tensor(self.num_classes, dtype=torch.int64, device=self.device)
        return None

    def decode(self, samples: Tensor) -> Tensor:
        """Turn states at t_eps into images in [-1, 1], or other data; the identity here."""
        return samples

    @property
    def input_dtype(self) -> torch.dtype | None:
        """The half precision to which `predict` first casts its states; None (default) if it does not.

        Float32 states are then passed to it in this precision, as the update before wrote them, and it
        answers in the same, which saves two passes over memory and gives the same numbers. Under autocast
        states are passed unchanged.
        """
        return None

    @property
    def device(self) -> torch.device:
        """Device of the parameters; the CPU if there are none."""
        first = next(chain(self.parameters(), self.buffers()), None)  # not all: large networks have thousands
        return torch.device("cpu") if first is None else first.device

    @property
    def sample_size(self) -> int:
        """Numbers in one state."""
        return math.prod(self.sample_shape)

    def save_weights(self, folder: Path) -> dict[str, Any]:
        """Write the weights into an empty folder and return the plain values that `load_weights` needs.

        Raises
        ------
        TypeError
            If the family cannot be stored in a folder.
        """
        raise TypeError(f"A {type(self).__name__} cannot be stored in a folder; save its network yourself.")

    @classmethod
    def load_weights(cls, folder: Path, config: dict[str, Any]) -> Denoiser:
        """Rebuild the denoiser that `save_weights` wrote."""
        raise TypeError(f"A {cls.__name__} cannot be loaded from a folder; build it anew.")

    def extra_repr(self) -> str:
        """Return the line that `repr` shows."""
        return f"{self.name!r}, {self.sample_shape}, {self.prediction_type!r}, {self.schedule!r}"


class _CallableDenoiser(Denoiser):
    """A custom function; an nn.Module is registered, so that .to() moves it."""

    def __init__(
        self,
        function: DenoiserFunction,
        decode: Callable[[Tensor], Tensor] | None,
        unconditional: Condition,
        **options: Any,
    ) -> None:
        if not callable(function):
            raise TypeError(
                f"The network is a {type(function).__name__}, but must be callable as f(x, t, condition)."
            )
        if not (decode is None or callable(decode)):
            raise TypeError(f"decode is {decode!r}, but must be callable as decode(samples), or None.")
        super().__init__(**options)
        self.function = function
        self._decode = decode
        self._unconditional = unconditional

    def predict(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self.function(x, t, condition)

    def unconditional_condition(self) -> Condition:
        return super().unconditional_condition() if self._unconditional is None else self._unconditional

    def decode(self, samples: Tensor) -> Tensor:
        return samples if self._decode is None else self._decode(samples)


def doubled_condition(unconditional: Condition, condition: Condition, batch: int) -> Condition:
    """Return the condition of the doubled batch, unconditional half first, broadcast over the batch."""
    if isinstance(condition, Tensor) and isinstance(unconditional, Tensor):
        condition = per_sample(condition, batch)
        try:
            return torch.cat([unconditional.to(condition).expand_as(condition), condition])
        except RuntimeError as error:
            raise ValueError(
                f"The unconditional condition has shape {tuple(unconditional.shape)}, which does not "
                f"broadcast to the condition's {tuple(condition.shape)}."
            ) from error
    pair = (unconditional, condition)
    if all(isinstance(side, Mapping) for side in pair) and unconditional.keys() == condition.keys():
        return {
            name: doubled_condition(unconditional[name], value, batch) for name, value in condition.items()
        }
    if all(isinstance(side, (list, tuple)) for side in pair) and len(unconditional) == len(condition):
        return tuple(doubled_condition(*sides, batch) for sides in zip(unconditional, condition, strict=True))
    plain = all(side is None or isinstance(side, (bool, int, float, str)) for side in pair)
    if plain and unconditional == condition:  # an option of the network rather than something per sample
        return condition
    raise ValueError(
        f"Guidance cannot join an unconditional condition of type {type(unconditional).__name__} with a "
        f"condition of type {type(condition).__name__}; pass two tensors, equal plain values, or two like "
        "containers of these."
    )


def check_noise(noise: Tensor) -> None:
    """Raise TypeError or ValueError if a solve cannot begin with this noise; warn if it is not finite."""
    check_dense("The noise", noise, "use torch.randn")
    if noise.dtype not in STATE_DTYPES:
        raise TypeError(
            f"The noise is {noise.dtype}, but must be floating point: float64, float32, float16 or bfloat16."
        )
    if noise.ndim == 0:
        raise ValueError("The noise is a single number, but needs a batch dimension; add one in front.")
    # A sum finds NaN and infinity in a hundredth of the time; it may also overflow.
    if _is_readable(noise) and not math.isfinite(noise.sum().item()) and not bool(noise.isfinite().all()):
        _warn_of_noise()


def _is_readable(noise: Tensor) -> bool:
    """Whether values can be read without delay: not those of a GPU, a fake tensor or a transform."""
    if torch.compiler.is_compiling() or not noise.is_cpu or type(noise) not in (Tensor, nn.Parameter):
        return False
    return not (is_transformed() or is_intercepted())


@functools.cache
def _warn_of_noise() -> None:
    """Warn once that noise is not finite, and so neither are the samples."""
    warnings.warn(
        "The noise holds NaN or infinite numbers, and so will the samples; draw it with torch.randn.",
        RuntimeWarning,
        stacklevel=4,
    )


def check_device(noise: Tensor, device: torch.device) -> None:
    """Raise ValueError if noise and solver are on different devices."""
    if noise.device != device:
        raise ValueError(f"The noise is on {noise.device} and the solver on {device}; move one of them.")


def check_output(output: Any, shape: Sequence[int]) -> None:
    """Raise TypeError or ValueError unless a network returned one output for an input of this shape."""
    if not isinstance(output, Tensor):
        raise TypeError(
            f"The network returned a {type(output).__name__}, but the denoiser must return a tensor; "
            "wrap the network to return e.g. its output's .sample, or its first element."
        )
    if output.shape != shape:
        raise ValueError(
            f"The network returned shape {tuple(output.shape)} for an input of shape "
            f"{tuple(shape)}; it must return one output per input."
        )
