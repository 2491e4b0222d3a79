"""Whole files: raw pickles, zip archives of torch.save, and its older single-stream form."""

from __future__ import annotations

import copy
import mmap
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gas_ext.safe_pickle.errors import DamagedPickleError, Limits, UnsafePickleError
from gas_ext.safe_pickle.machine import Machine, PersistentId
from gas_ext.safe_pickle.objects import PickledObject, PickledTensor, Storage

# What reading garbage may raise, apart from errors of this room; any other error is a bug and passes.
_FAULTS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
)
_STREAM_MAGIC = 0x1950A86A20F9469CFC6C  # first value of the single-stream form of torch.save
_STREAM_PROTOCOL = 1001
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # of a zip entry
_LONGEST_DIRECTORY = 16 * 2**20  # bytes of a zip file's directory; one entry takes about 100


def read_pickle(
    source: str | os.PathLike[str] | bytes, limits: Limits | None = None, *, tensors: bool = True
) -> Any:
    """Read a raw pickle: an EDM network, an R3GAN snapshot, a data set of teacher samples.

    Parameters
    ----------
    source : path or bytes
        The file, which is memory-mapped, or its content.
    limits : Limits, optional
        Limits on size and nesting.
    tensors : bool
        False returns `PickledTensor` records instead of tensors, whose rows are loaded on demand. Default:
        True.

    Returns
    -------
    object
        dict, list, tuple, set, str, int, float, bool, None, bytes (memoryview if long), torch.Tensor,
        torch.dtype, `PickledObject` for instances of classes, and `PickledGlobal` for classes. No container
        contains itself.

    Raises
    ------
    UnsafePickleError
        If the file names or calls anything that is not on the list.
    DamagedPickleError
        If the file is truncated, altered, or exceeds the limits.

    Examples
    --------
    >>> import pickle
    >>> read_pickle(pickle.dumps({"loss": [0.5, None]}))
    {'loss': [0.5, None]}
    """
    return _read(source, limits, tensors, _raw_pickle)


def read_torch_archive(
    source: str | os.PathLike[str] | bytes, limits: Limits | None = None, *, tensors: bool = True
) -> Any:
    """Read a file of torch.save (.ckpt, .pt, .pth), zip or single stream.

    Parameters, result and errors as for `read_pickle`. Classes of PyTorch Lightning's callbacks, which are
    dictionary keys in such files, become `PickledGlobal`.

    Examples
    --------
    >>> import io
    >>> file = io.BytesIO()
    >>> torch.save({"weight": torch.zeros(2)}, file)
    >>> read_torch_archive(file.getvalue())
    {'weight': tensor([0., 0.])}
    """
    return _read(source, limits, tensors, _torch_archive)


def _read(
    source: str | os.PathLike[str] | bytes,
    limits: Limits | None,
    tensors: bool,
    read: Callable[[memoryview, Limits], Any],
) -> Any:
    limits = copy.copy(limits or Limits())  # reading counts them down
    name = "The pickle" if isinstance(source, bytes) else str(source)
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise FileNotFoundError(f"There is no file {source}.")
    try:
        data = _mapped(source)
        limits.stored_bytes = len(data)
        return _Finisher(limits.depth, tensors).finish(read(data, limits))[0]
    except UnsafePickleError as error:
        raise UnsafePickleError(
            f"{name} is refused: {error}; only files of known types are read, and nothing in them is run."
        ) from None
    except _FAULTS as error:
        reason = str(error) if isinstance(error, DamagedPickleError) else f"{type(error).__name__} in reading"
        raise DamagedPickleError(
            f"{name} is damaged or of another type: {reason}; get a fresh copy."
        ) from None


def _mapped(source: str | os.PathLike[str] | bytes) -> memoryview:
    """Return the content; a file is mapped privately, so that its tensors are writable."""
    if isinstance(source, bytes):
        return memoryview(bytearray(source))
    with open(source, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise DamagedPickleError("it is empty")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))


def _raw_pickle(data: memoryview, limits: Limits) -> Any:
    return Machine(data, limits, _load_from_bytes).run()


def _load_from_bytes(limits: Limits, data: Any) -> Any:
    """Read torch.storage._load_from_bytes."""
    limits.spend("streams")
    if isinstance(data, bytes):
        limits.spend("text_bytes", len(data))
        data = memoryview(bytearray(data))
    if not isinstance(data, memoryview):
        raise DamagedPickleError("a storage is not made of bytes")
    return _torch_stream(data, limits)


def _torch_stream(data: memoryview, limits: Limits) -> Any:
    """Read the single-stream form: five pickles, then each storage as a count and its elements."""
    storages: dict[str, Storage] = {}
    position = 0

    def part(persistent_id: PersistentId | None = None) -> Any:
        nonlocal position
        machine = Machine(data, limits, _no_nested_stream, persistent_id, position)
        value = machine.run()
        position = machine.position
        return value

    def storage(identity: Any) -> Storage:
        return _add(storages, *_storage_of(identity))

    if part() != _STREAM_MAGIC or part() != _STREAM_PROTOCOL:
        raise DamagedPickleError("it is not a torch.save stream")
    system = part()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise DamagedPickleError("it is not little-endian")
    value = part(storage)
    keys = part()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise DamagedPickleError("it does not list its storages")
    if sorted(keys) != sorted(storages):
        raise DamagedPickleError("its storages are not those that it lists")
    for key in keys:
        found = storages[key]
        count = struct.unpack("<q", data[position : position + 8])[0]
        if count != found.numel:
            raise DamagedPickleError("a storage has another size than announced")
        position += 8
        limits.spend("stored_bytes", found.nbytes)
        found.bind(data[position:])
        position += found.nbytes
    return value


def _no_nested_stream(limits: Limits, data: Any) -> Any:
    raise DamagedPickleError("a storage contains another file")


def _storage_of(identity: Any) -> tuple[str, Storage]:
    """Read a persistent id ("storage", type, key, device, number of elements[, None])."""
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        raise UnsafePickleError("it refers to an object outside the file that is not a storage")
    _, dtype, key, _, numel = identity[:5]
    if len(identity) == 6 and identity[5] is not None:
        raise DamagedPickleError("a storage is a view of another")
    if not isinstance(dtype, torch.dtype) or not isinstance(key, str) or type(numel) is not int or numel < 0:
        raise DamagedPickleError("a storage has no type, key or size")
    return key, Storage(dtype, numel)


def _add(storages: dict[str, Storage], key: str, found: Storage) -> Storage:
    """Return the storage of a key, new or as it was described before."""
    known = storages.setdefault(key, found)
    if (known.dtype, known.numel) != (found.dtype, found.numel):
        raise DamagedPickleError("a storage is read as two types")
    return known


def _torch_archive(data: memoryview, limits: Limits) -> Any:
    if bytes(data[:2]) != b"PK":
        return _torch_stream(data, limits)
    try:
        listed = zipfile.ZipFile(_Seekable(data)).infolist()
    except zipfile.BadZipFile:
        raise DamagedPickleError("it is truncated or altered: it has no zip directory") from None
    entries = {entry.filename: entry for entry in listed}
    if len(entries) < len(listed):
        raise DamagedPickleError("two of its entries have the same name")
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise DamagedPickleError("it is not a torch.save archive")
    folder = pickles[0].removesuffix("data.pkl")
    order = entries.get(f"{folder}byteorder")
    if order is not None and bytes(_content(data, limits, order)) != b"little":
        raise DamagedPickleError("it is not little-endian")
    storages: dict[str, Storage] = {}

    def storage(identity: Any) -> Storage:
        key, found = _storage_of(identity)
        if key not in storages:
            found.bind(_content(data, limits, entries[f"{folder}data/{key}"]))
        return _add(storages, key, found)

    pickle = _content(data, limits, entries[pickles[0]])
    return Machine(pickle, limits, _no_nested_stream, storage).run()


def _content(data: memoryview, limits: Limits, entry: zipfile.ZipInfo) -> memoryview:
    """Return a view of the bytes of a stored zip entry, after checking their checksum."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        raise DamagedPickleError("it is compressed, which torch.save does not do")
    limits.spend("stored_bytes", entry.file_size)
    start = entry.header_offset
    header = _LOCAL_HEADER.unpack(data[start : start + _LOCAL_HEADER.size])
    start += _LOCAL_HEADER.size + header[-2] + header[-1]  # lengths of the name and of the extra field
    content = data[start : start + entry.file_size]
    if header[0] != b"PK\3\4" or len(content) != entry.file_size or zlib.crc32(content) != entry.CRC:
        raise DamagedPickleError("an entry does not match its checksum")
    return content


class _Seekable:
    """The part of a file's interface with which zipfile reads a directory."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.position = data, 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self.position = max(0, offset + (0, self.position, len(self.data))[whence])
        return self.position

    def tell(self) -> int:
        return self.position

    def read(self, count: int = -1) -> bytes:
        end = len(self.data) if count is None or count < 0 else self.position + count
        view = self.data[self.position : end]
        if len(view) > _LONGEST_DIRECTORY:
            raise DamagedPickleError("its directory is too long")
        part = bytes(view)
        self.position += len(part)
        return part


class _Finisher:
    """Replaces tensor records by tensors, if wanted, and checks that values nest at most `depth` levels."""

    def __init__(self, depth: int, tensors: bool) -> None:
        self.depth, self.tensors = depth, tensors
        # By identity: the original (a reference, so that its id stays unique), its replacement, its levels.
        self.made: dict[int, tuple[Any, Any, int]] = {}
        self.unfinished: set[int] = set()

    def finish(self, item: Any, level: int = 0) -> tuple[Any, int]:
        """Return the replacement of an item at some level, and how many levels of containers are in it."""
        if not isinstance(item, (PickledTensor, PickledObject, dict, list, tuple)):
            return item, 0
        key = id(item)
        if key not in self.made:
            if key in self.unfinished:
                raise DamagedPickleError("one of its values contains itself")
            if level > self.depth:
                raise DamagedPickleError(f"its values are nested deeper than {self.depth}")
            self.unfinished.add(key)
            self.made[key] = (item, *self._make(item, level))
            self.unfinished.remove(key)
        _, whole, levels = self.made[key]
        if level + levels > self.depth:
            raise DamagedPickleError(f"its values are nested deeper than {self.depth}")
        return whole, levels

    def _make(self, item: Any, level: int) -> tuple[Any, int]:
        if isinstance(item, PickledTensor):
            return item.tensor() if self.tensors else item, 0
        if isinstance(item, tuple):
            parts = [self.finish(child, level + 1) for child in item]
            return tuple([part for part, _ in parts]), 1 + max([levels for _, levels in parts], default=0)
        holder: Any = item.state if isinstance(item, PickledObject) else item
        deepest = 0
        for key, child in holder.items() if isinstance(holder, dict) else enumerate(holder):
            holder[key], levels = self.finish(child, level + 1)
            deepest = max(deepest, levels)
        return item, 1 + deepest
