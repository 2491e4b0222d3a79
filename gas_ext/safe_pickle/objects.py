"""What a pickle is read into: plain Python values, tensors, and inert records of everything else."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gas_ext.safe_pickle.errors import DamagedPickleError


@dataclass(frozen=True)
class PickledGlobal:
    """A class or function that a file names; only its name, never the thing itself."""

    module: str
    name: str


@dataclass
class PickledObject:
    """An object that is not rebuilt: the name of its class and its attributes.

    Parameters
    ----------
    module, name : str
        Where the class lived, and its name.
    state : dict
        Its attributes; for an nn.Module ``_parameters``, ``_buffers``, ``_modules`` and the constructor's
        values.
    """

    module: str
    name: str
    state: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass
class Storage:
    """The raw elements behind tensors; `data` is bound when its bytes have been found."""

    dtype: torch.dtype
    numel: int
    data: memoryview | None = field(default=None, repr=False)
    _elements: Tensor | None = field(default=None, repr=False)

    def bind(self, data: memoryview) -> None:
        """Point to the bytes; there may be more than needed, never fewer."""
        size = self.numel * self.dtype.itemsize
        if len(data) < size:
            raise DamagedPickleError(f"a storage of {size} bytes has only {len(data)}")
        self.data = data[:size]

    def elements(self) -> Tensor:
        """Return all elements as one vector: in place where the bytes are aligned, a copy otherwise."""
        if self._elements is None:
            if self.data is None:
                raise DamagedPickleError("a tensor's elements are missing")
            if self.numel == 0:
                self._elements = torch.empty(0, dtype=self.dtype)
            else:
                raw = torch.frombuffer(self.data, dtype=torch.uint8)
                if raw.data_ptr() % 16:
                    raw = raw.clone()
                self._elements = raw.view(self.dtype)
        return self._elements


@dataclass
class PickledTensor:
    """A tensor described by a file: a view of a storage, loaded when asked."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check that every element lies inside the storage, and that none is counted many times."""
        sizes, strides = self.shape, self.stride
        whole = [*sizes, *strides, self.offset]
        if not all(type(value) is int and 0 <= value < 2**48 for value in whole):
            raise DamagedPickleError("a tensor has impossible sizes")
        if len(sizes) != len(strides) or len(sizes) > 32:
            raise DamagedPickleError("a tensor has impossible sizes")
        numel = math.prod(sizes)
        last = self.offset + sum((size - 1) * step for size, step in zip(sizes, strides, strict=True))
        if numel > self.storage.numel or (numel and last >= self.storage.numel):
            raise DamagedPickleError("a tensor reaches beyond its storage")

    @property
    def dtype(self) -> torch.dtype:
        """Return the element type."""
        return self.storage.dtype

    def tensor(self) -> Tensor:
        """Return the tensor; views of one storage share memory, as they did."""
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.dtype)
        return torch.as_strided(self.storage.elements(), self.shape, self.stride, self.offset)

    def rows(self, start: int, stop: int) -> Tensor:
        """Return entries start to stop of the first dimension, copying these alone."""
        if not self.shape or math.prod(self.shape) == 0 or self.stride != _contiguous(self.shape):
            return self.tensor()[start:stop].clone()
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        row, size = self.stride[0], self.dtype.itemsize
        assert self.storage.data is not None
        first = (self.offset + start * row) * size
        part = self.storage.data[first : first + (stop - start) * row * size]
        if len(part) == 0:
            return torch.empty((0, *self.shape[1:]), dtype=self.dtype)
        copy = torch.frombuffer(part, dtype=torch.uint8).clone()
        return copy.view(self.dtype).reshape(-1, *self.shape[1:])


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def state_dict_of(module: PickledObject, *, depth: int = 200) -> dict[str, Tensor]:
    """Return the parameters and persistent buffers of a pickled nn.Module under their dotted names.

    Parameters
    ----------
    module : PickledObject
        Has ``_parameters``, ``_buffers`` and ``_modules``.
    depth : int
        Deepest nesting of modules.

    Raises
    ------
    DamagedPickleError
        If the record is no module, or modules contain each other.
    """
    found: dict[str, Tensor] = {}
    visited = 0
    for prefix, record in _modules(module, depth):
        visited += 1
        if visited > 100_000:
            raise DamagedPickleError("a network has more than 100,000 modules")
        fleeting = record.state.get("_non_persistent_buffers_set") or ()
        for kind in ("_parameters", "_buffers"):
            for name, value in _entries(record, kind).items():
                if value is None or (kind == "_buffers" and name in fleeting):
                    continue
                if not isinstance(value, Tensor):
                    raise DamagedPickleError(f"{prefix}{name} of a network is no tensor")
                found[f"{prefix}{name}"] = value
    return found


def _modules(module: PickledObject, depth: int) -> Iterator[tuple[str, PickledObject]]:
    """Yield every module with the prefix of its names; deeper than `depth` is an error."""
    waiting = [("", module, 0)]
    while waiting:
        prefix, record, level = waiting.pop()
        if not isinstance(record, PickledObject) or not isinstance(record.state, dict):
            raise DamagedPickleError(f"{prefix or 'the network'} is no pickled module")
        if level > depth:
            raise DamagedPickleError(f"modules are nested deeper than {depth}")
        yield prefix, record
        for name, child in reversed(list(_entries(record, "_modules").items())):
            if child is not None:
                waiting.append((f"{prefix}{name}.", child, level + 1))


def _entries(record: PickledObject, kind: str) -> dict[str, Any]:
    entries = record.state.get(kind)
    if not isinstance(entries, dict) or not all(isinstance(name, str) for name in entries):
        raise DamagedPickleError(f"a pickled {record.name} has no {kind}")
    return entries
