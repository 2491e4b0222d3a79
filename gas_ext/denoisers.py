"""The one interface behind which every network stands.

A network has its own notion of time, scale and conditions. A `Denoiser` hides them: its states are
x_t = alpha(t) x_0 + sigma(t) eps of its schedule, its time is the schedule's own, and its conditions are made
from what users write (labels, prompts). Sampler, trainer and data know nothing else about a model.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gas_ext.coefficients import check_prediction_type
from gas_ext.schedules import NoiseSchedule
from gas_ext.spacings import check_interval

# What networks are given besides x and t: None, a tensor whose first dimension is the batch, or a dict, list
# or tuple of such.
Condition = Any
DenoiserFunction = Callable[[Tensor, Tensor, Condition], Tensor]

UNNAMED = "denoiser"  # name of a model that was given none

CONDITION_KINDS = ("none", "label", "prompt", "tensor")


def per_sample(condition: Tensor, batch: int) -> Tensor:
    """Return a condition with one entry for each of `batch` samples; a single entry serves them all.

    Parameters
    ----------
    condition : Tensor
        (batch, ...), (1, ...) or 0-d.
    batch : int
        Number of samples.

    Raises
    ------
    ValueError
        If it has another number of entries.

    Examples
    --------
    >>> per_sample(torch.tensor(7), 3)
    tensor([7, 7, 7])
    """
    entries = condition[None] if condition.ndim == 0 else condition
    if len(entries) not in (1, batch):
        raise ValueError(
            f"Got {batch} samples and a condition of {len(entries)}; give one per sample, or one for all."
        )
    return entries.expand(batch, *entries.shape[1:])


class Denoiser(nn.Module, ABC):
    """A pretrained network in the coordinates and the time of its noise schedule.

    Subclasses implement `predict`; those with prompts also `encode_condition` and `unconditional_condition`,
    those that work on latents also `decode`. Make one from a function with `from_callable`, from a diffusers
    model with `from_diffusers`.

    Parameters
    ----------
    schedule : NoiseSchedule
        Schedule of the states x_t.
    prediction_type : str
        "epsilon", "sample", "v_prediction" or "flow_prediction"; see `GASSampler`.
    sample_shape : sequence of int
        Shape of one state, without the batch: (3, 32, 32) for an image, (2, 1000) for a signal, ...
    name : str
        Identity of the model, written into solver files and sample folders.
    condition_kind : str
        "none"; "label": int64 class labels (B,); "prompt": texts, encoded into a dict of tensors; "tensor":
        anything else, handed to the network as it is.
    num_classes : int, optional
        For labels: labels are 0 to num_classes - 1, and num_classes itself means "no label".
    t_eps : float
        Where sampling ends unless a solver says otherwise.
    guidance_scale : float, optional
        What the model is usually sampled with.

    Attributes
    ----------
    evaluations : int
        Calls so far. One call on the doubled batch of classifier-free guidance counts once, as NFE does in
        the literature. Not counted inside a graph of `torch.compile`.
    weights_hash : str
        SHA-256 (hex) of the weights, where known; "" otherwise.

    Raises
    ------
    TypeError
        If the schedule is no `NoiseSchedule`.
    ValueError
        If a shape, prediction type, condition kind or last time is impossible.
    """

    family: ClassVar[str] = "custom"

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
        if not isinstance(schedule, NoiseSchedule):
            raise TypeError(f"schedule is {schedule!r}, but must be a NoiseSchedule, e.g. .flow().")
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
        self.sample_shape = tuple(int(size) for size in sample_shape)
        if any(size < 1 for size in self.sample_shape):
            raise ValueError(f"sample_shape is {self.sample_shape}, but sizes must be at least 1.")
        self.name = name
        self.condition_kind = condition_kind
        self.num_classes = num_classes
        self.t_eps = t_eps
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
            x (B, ...) in the schedule's coordinates; t a float64 0-d tensor, the schedule's own time (a
            network that counts to 1000 is ``lambda x, t, c: network(x, 1000 * t, c)``). A module's own
            parameters are frozen while it is sampled or learned from, not for good.
        decode : callable, optional
            Maps states to images in [-1, 1].
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

    @staticmethod
    def from_diffusers(pipeline: Any, **options: Any) -> Denoiser:
        """Wrap a diffusers pipeline, given itself or as a folder or hub name.

        See `gas_ext.teachers.diffusers.from_diffusers` for the options.
        """
        from gas_ext.teachers.diffusers import from_diffusers

        wrapped: Denoiser = from_diffusers(pipeline, **options)
        return wrapped

    def forward(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        """Evaluate the network once and count it; see `predict`.

        Raises
        ------
        ValueError
            If x has another number of dimensions or channels than `sample_shape`.
        """
        self.check_channels(x)
        if not torch.compiler.is_compiling():
            self.evaluations += 1
        return self.predict(x, t, condition)

    def check_channels(self, x: Tensor) -> None:
        """Raise ValueError for states that no size of this network's samples has; sizes may differ."""
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
            float64, 0-d or (B,), the schedule's own time.
        condition : optional
            What `encode_condition` returns, or None.
        """

    def encode_condition(self, values: Any) -> Condition:
        """Turn what users write into what `predict` takes; what is encoded already passes through.

        Parameters
        ----------
        values : optional
            None; for labels: integers or an integer tensor (B,); for other kinds: what the network takes.

        Raises
        ------
        ValueError
            If a label does not exist or is no integer, or the model takes no condition of this kind.
        """
        if values is None or self.condition_kind == "tensor":
            return values
        if self.condition_kind == "label":
            return self._labels(values)
        if self.condition_kind == "none":
            raise ValueError(
                f"{self.name} takes no condition, but got a {type(values).__name__}; leave it out."
            )
        raise NotImplementedError(f"{type(self).__name__} must say how prompts are encoded.")

    def _labels(self, values: Any) -> Tensor:
        assert self.num_classes is not None
        try:
            labels = torch.as_tensor(values, device=self.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"Labels of {self.name} must be integers, which these are not: {str(values)[:60]}."
            ) from error
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise ValueError(f"Labels are {labels.dtype}, but must be integers; use .long().")
        lowest = highest = 0
        # Reading a device's values would stall it; there the network's own indexing checks them.
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
        """Turn states at t_eps into images in [-1, 1], or whatever the model makes; the identity here."""
        return samples

    @property
    def input_dtype(self) -> torch.dtype | None:
        """The dtype to which `predict` casts its states before anything else, if it does; None here.

        Float32 states are then given to it in this half precision at once, as the update before wrote them,
        and it answers in the same, which saves two passes over memory. The numbers are the same. Under
        autocast the states are given as they are.
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
            If the family cannot be kept in a folder.
        """
        raise TypeError(f"A {type(self).__name__} cannot be kept in a folder: save its network yourself.")

    @classmethod
    def load_weights(cls, folder: Path, config: dict[str, Any]) -> Denoiser:
        """Rebuild what `save_weights` wrote."""
        raise TypeError(f"A {cls.__name__} cannot be loaded from a folder.")

    def extra_repr(self) -> str:
        """Return the line that `repr` shows."""
        return f"{self.name!r}, {self.sample_shape}, {self.prediction_type!r}, {self.schedule!r}"


class _CallableDenoiser(Denoiser):
    """A user's own function; an nn.Module is registered, so that .to() moves it."""

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
