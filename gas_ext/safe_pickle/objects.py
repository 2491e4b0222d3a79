"""Inert records of tensors, storages, classes and objects in a pickle."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gas_ext.safe_pickle.errors import DamagedPickleError, printable

_MOST_NAMES = 100_000  # of parameters, buffers and modules in a network
_LONGEST_NAME = 2_000  # characters of a dotted name


@dataclass(frozen=True)
class PickledGlobal:
    """The name of a class or function in a file, never the class or function itself."""

    module: str
    name: str


@dataclass
class PickledObject:
    """An object that is not rebuilt: module and name of its class, and its attributes.

    The attributes of an nn.Module are ``_parameters``, ``_buffers``, ``_modules`` and the constructor's
    values.
    """

    module: str
    name: str
    state: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass
class Storage:
    """The raw elements of tensors; their bytes are bound once they are found."""

    dtype: torch.dtype
    numel: int
    data: memoryview | None = field(default=None, repr=False)
    _elements: Tensor | None = field(default=None, repr=False)

    @property
    def nbytes(self) -> int:
        """Return the size in bytes."""
        return self.numel * self.dtype.itemsize

    def bind(self, data: memoryview) -> None:
        """Use the first of these bytes; DamagedPickleError if there are too few."""
        if len(data) < self.nbytes:
            raise DamagedPickleError(f"a storage of {self.nbytes} bytes has only {len(data)}")
        self.data = data[: self.nbytes]

    def elements(self) -> Tensor:
        """Return all elements as one vector: in place where the bytes are aligned, a copy otherwise."""
        if self._elements is None:
            assert self.data is not None
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
    """A tensor described by a file: a view of a storage, loaded on demand."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check that the tensor is inside its storage and has at most as many elements."""
        sizes, strides = self.shape, self.stride
        whole = [*sizes, *strides, self.offset]
        if not all(type(value) is int and 0 <= value < 2**48 for value in whole):
            raise DamagedPickleError("a tensor has impossible sizes")
        if len(sizes) != len(strides) or len(sizes) > 32:
            raise DamagedPickleError("a tensor has impossible sizes")
        numel = math.prod(sizes)
        last = self.offset + _last(sizes, strides)
        if numel > self.storage.numel or (numel and last >= self.storage.numel):
            raise DamagedPickleError("a tensor reaches beyond its storage")

    @property
    def dtype(self) -> torch.dtype:
        """Return the element type."""
        return self.storage.dtype

    def tensor(self) -> Tensor:
        """Return the tensor; views of one storage share memory, as in the file."""
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.dtype)
        return torch.as_strided(self.storage.elements(), self.shape, self.stride, self.offset)

    def rows(self, start: int, stop: int) -> Tensor:
        """Return a copy of entries start to stop of the first dimension; only these are read."""
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        shape = (max(stop - start, 0), *self.shape[1:])
        if 0 in shape:
            return torch.empty(shape, dtype=self.dtype)
        assert self.storage.data is not None
        part = Storage(self.dtype, 1 + _last(shape, self.stride))
        part.bind(self.storage.data[(self.offset + start * self.stride[0]) * self.dtype.itemsize :])
        return torch.as_strided(part.elements(), shape, self.stride).clone()


def _last(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Return the index of the last element in the storage, counted from the first."""
    return sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def state_dict_of(module: PickledObject, *, depth: int = 200) -> dict[str, Tensor]:
    """Return the parameters and persistent buffers of a pickled nn.Module under their dotted names.

    Parameters
    ----------
    module : PickledObject
        With ``_parameters``, ``_buffers`` and ``_modules``.
    depth : int
        Deepest nesting of modules. Default: 200.

    Raises
    ------
    DamagedPickleError
        If the record is not a module, modules contain each other, or there are more names or shared tensors
        (`check_sharing`) than in any network.
    """
    found: dict[str, Tensor] = {}
    names_left = _MOST_NAMES
    waiting = [("", module, 0)]
    while waiting:
        prefix, record, level = waiting.pop()
        if not isinstance(record, PickledObject):
            raise DamagedPickleError(f"{printable(prefix) or 'the network'} is not a pickled module")
        if level > depth:
            raise DamagedPickleError(f"modules are nested deeper than {depth}")
        parameters, buffers, modules = (
            _entries(record, part, prefix) for part in ("_parameters", "_buffers", "_modules")
        )
        names_left -= len(parameters) + len(buffers) + len(modules)
        if names_left < 0:
            raise DamagedPickleError(f"a network has more than {_MOST_NAMES} names")
        fleeting = record.state.get("_non_persistent_buffers_set")
        if isinstance(fleeting, set):
            buffers = {name: value for name, value in buffers.items() if name not in fleeting}
        for name, value in (*parameters.items(), *buffers.items()):
            if value is not None and not isinstance(value, Tensor):
                raise DamagedPickleError(f"{printable(prefix + name)} of a network is not a tensor")
            if value is not None:
                found[prefix + name] = value
        for name, child in reversed(modules.items()):
            if child is not None:
                waiting.append((f"{prefix}{name}.", child, level + 1))
    check_sharing(found.values())
    return found


def check_sharing(tensors: Collection[Tensor]) -> None:
    """Raise DamagedPickleError if copies of the tensors would take far more memory than their file.

    A file may give one tensor any number of names; networks tie a few at most.
    """
    storages = [tensor.untyped_storage() for tensor in tensors]
    stored = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    if sum(tensor.nbytes for tensor in tensors) > 2 * stored:
        raise DamagedPickleError("its tensors share their numbers")


def _entries(record: PickledObject, part: str, prefix: str) -> dict[str, Any]:
    """Return the named tensors or modules in a module."""
    entries = record.state.get(part)
    if not isinstance(entries, dict):
        raise DamagedPickleError(f"a pickled {printable(record.name)} has no {part}")
    if len(entries) > _MOST_NAMES:
        raise DamagedPickleError(f"a network has more than {_MOST_NAMES} names")
    if not all(isinstance(name, str) and len(prefix) + len(name) <= _LONGEST_NAME for name in entries):
        raise DamagedPickleError(f"a pickled {printable(record.name)} has impossible names in its {part}")
    return entries
