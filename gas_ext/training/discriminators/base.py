"""The interface of all discriminators, and their registry by name."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Discriminator(nn.Module, ABC):
    """A network that scores samples: the higher the logit, the more a sample looks like the teacher's.

    Subclasses implement `features` and pass their constructor's arguments to `super` as `settings`; once
    registered under a name, they can be built, saved and loaded. The logit is the sum of the features or,
    with class labels, their inner product with the label's embedding.

    Parameters
    ----------
    sample_shape : sequence of int
        Shape of one sample, without the batch: channels first, then any number of axes.
    settings : mapping, optional
        Keyword arguments that rebuild the discriminator, as plain JSON values.
    num_classes : int
        Number of class labels; 0 for an unconditional discriminator.
    embedding_dim : int
        Number of features E and size of a label's embedding.

    Raises
    ------
    ValueError
        If a size is out of range.

    Examples
    --------
    >>> class Linear(Discriminator):
    ...     def __init__(self, sample_shape):
    ...         super().__init__(sample_shape)
    ...         self.layer = nn.Linear(math.prod(sample_shape), 1)
    ...     def features(self, samples):
    ...         return self.layer(samples.flatten(1))
    >>> Linear((3, 8))(torch.randn(5, 3, 8)).shape
    torch.Size([5])
    """

    name: ClassVar[str] = ""  # set by register_discriminator

    def __init__(
        self,
        sample_shape: Sequence[int],
        settings: Mapping[str, Any] | None = None,
        *,
        num_classes: int = 0,
        embedding_dim: int = 1,
    ) -> None:
        super().__init__()
        self.sample_shape = tuple(int(size) for size in sample_shape)
        if not self.sample_shape or min(self.sample_shape) < 1:
            raise ValueError(f"sample_shape is {self.sample_shape}, but must be sizes of at least 1.")
        if num_classes < 0 or embedding_dim < 1:
            raise ValueError(
                f"num_classes is {num_classes} and embedding_dim {embedding_dim}, but they must be at least "
                "0 and 1."
            )
        self.settings = dict(settings or {})
        self.num_classes = num_classes
        self.embedding: nn.Linear | None = None
        if num_classes:
            self.embedding = nn.Linear(num_classes, embedding_dim, bias=False)
            # Features of unit variance then give logits of unit variance.
            nn.init.normal_(self.embedding.weight, std=1.0 / math.sqrt(embedding_dim))

    @abstractmethod
    def features(self, samples: Tensor) -> Tensor:
        """Return (B, E) for samples (B, *sample_shape) in the dtype of the parameters.

        It must be twice differentiable for the gradient penalties, and independent of the other samples.
        """

    def forward(self, samples: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return one logit per sample (B,), computed in the dtype of the parameters.

        Parameters
        ----------
        samples : Tensor
            (B, *sample_shape), floating point.
        labels : Tensor, optional
            int64 (B,), for a conditional discriminator; `num_classes` means "no label". Without labels every
            embedding is 1, as GAS uses a class-conditional discriminator for a teacher without classes.
        """
        if tuple(samples.shape[1:]) != self.sample_shape or samples.ndim == 0:
            raise ValueError(
                f"Samples have shape {tuple(samples.shape)}, but this discriminator was built for "
                f"(batch, {', '.join(map(str, self.sample_shape))})."
            )
        features = self.features(samples.to(self.dtype)).to(self.dtype)
        if labels is not None:
            features = features * self._embedded(labels, len(samples))
        return features.sum(1)

    def _embedded(self, labels: Tensor, batch: int) -> Tensor:
        if self.embedding is None:
            raise ValueError("This discriminator takes no labels, but got some; omit them.")
        if labels.dtype != torch.int64 or tuple(labels.shape) != (batch,):
            raise ValueError(
                f"Labels are {labels.dtype} of shape {tuple(labels.shape)}, but must be int64 ({batch},)."
            )
        # Reading a device's values would stall it; there the indexing itself checks them.
        if not labels.is_cuda and not bool(((labels >= 0) & (labels <= self.num_classes)).all()):
            raise ValueError(
                f"Labels are {labels.min().item()} to {labels.max().item()}, but must be 0 to "
                f"{self.num_classes - 1}, or {self.num_classes} for no label."
            )
        no_label = self.embedding.weight.new_ones(self.embedding.out_features, 1)
        return F.embedding(labels, torch.cat([self.embedding.weight, no_label], dim=1).T)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters, and of the logits."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    def extra_repr(self) -> str:
        """Return the line that `repr` shows."""
        return f"{self.name!r}, {self.sample_shape}, num_classes={self.num_classes}"


_Class = TypeVar("_Class", bound=type[Discriminator])
_REGISTRY: dict[str, type[Discriminator]] = {}


def register_discriminator(name: str) -> Callable[[_Class], _Class]:
    """Return a class decorator that registers a discriminator for `build_discriminator` and files.

    A file is first built on torch's "meta" device, so the constructor must not read tensor values.
    ValueError if another class has the name.

    Examples
    --------
    >>> @register_discriminator("sum")
    ... class Sum(Discriminator):
    ...     def __init__(self, sample_shape):
    ...         super().__init__(sample_shape)
    ...         self.scale = nn.Parameter(torch.ones(()))
    ...     def features(self, samples):
    ...         return self.scale * samples.flatten(1).sum(1, keepdim=True)
    >>> build_discriminator("sum", (2,))(torch.ones(1, 2))
    tensor([2.], grad_fn=<SumBackward1>)
    """

    def register(cls: _Class) -> _Class:
        known = _REGISTRY.get(name)
        # A class that is defined again, e.g. in a notebook, replaces itself.
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(
                f"A discriminator {name!r} exists already ({known.__qualname__}); use another name."
            )
        cls.name = name
        _REGISTRY[name] = cls
        return cls

    return register


def discriminator_names() -> list[str]:
    """Return the names that `build_discriminator` knows."""
    return sorted(_REGISTRY)


def build_discriminator(
    name: str, sample_shape: Sequence[int], *, seed: int | None = None, **settings: Any
) -> Discriminator:
    """Build a discriminator with random weights.

    Parameters
    ----------
    name : str
        A registered name.
    sample_shape : sequence of int
        Shape of one sample, without the batch.
    seed : int, optional
        Seed of the weights; without it they come from torch's global generator.
    **settings
        Keyword arguments of the class.

    Raises
    ------
    ValueError
        If the name is unknown, or the class rejects the shape or the settings.

    Examples
    --------
    >>> discriminator = build_discriminator("convolution", (2, 128), seed=0, width=8)
    >>> discriminator(torch.zeros(3, 2, 128)).shape
    torch.Size([3])
    """
    if name not in _REGISTRY:
        raise ValueError(
            f"There is no discriminator {name!r}; use one of {', '.join(discriminator_names())}, or register "
            "one with register_discriminator."
        )
    build = _REGISTRY[name]
    if seed is None:
        return build(sample_shape, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build(sample_shape, **settings)
