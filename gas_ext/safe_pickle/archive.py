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

_STREAM_MAGIC = 0x1950A86A20F9469CFC6C  # first value of the single-stream form of torch.save
_STREAM_PROTOCOL = 1001
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # of a zip entry
_LONGEST_DIRECTORY = 16 * 2**20  # bytes of a zip file's directory; one entry takes about 100

# What reading garbage may end in besides our own errors.
_FAULTS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    RuntimeError,
    TypeError,
    UnicodeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
)


def read_pickle(
    source: str | os.PathLike[str] | bytes, limits: Limits | None = None, *, tensors: bool = True
) -> Any:
    """Read a raw pickle: an EDM network, an R3GAN snapshot, a data set of teacher samples.

    Parameters
    ----------
    source : path or bytes
        The file, which is mapped rather than read, or its content.
    limits : Limits, optional
        How much it may ask for.
    tensors : bool
        False leaves `PickledTensor` records in place of tensors, whose rows are loaded when asked.

    Returns
    -------
    object
        dict, list, tuple, set, str, int, float, bool, None, bytes (long ones as memoryview), torch.Tensor,
        torch.dtype; `PickledObject` records of everything that is an instance of a class, and `PickledGlobal`
        for a class itself. No container holds itself.

    Raises
    ------
    UnsafePickleError
        If it names or calls anything that is not on the list; the message has the name.
    DamagedPickleError
        If it is cut off, altered, or asks for more than the limits.

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
    """Read what torch.save wrote (.ckpt, .pt, .pth), zip or single stream.

    Parameters, result and errors as for `read_pickle`. Classes of PyTorch Lightning's callbacks, which stand
    in such files as dictionary keys, are among the `PickledGlobal`.

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
    form: Callable[[memoryview, Limits], Any],
) -> Any:
    limits = copy.copy(limits or Limits())  # reading counts them down
    name = "The pickle" if isinstance(source, bytes) else str(source)
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise FileNotFoundError(f"There is no file {source}.")
    try:
        data = _mapped(source)
        limits.stored_bytes = len(data)
        return _Finisher(limits.depth, tensors).finish(form(data, limits))[0]
    except UnsafePickleError as error:
        raise UnsafePickleError(
            f"{name} is refused: {error}; only files of the known kinds are read, and nothing in them is run."
        ) from None
    except _FAULTS as error:
        reason = str(error) if isinstance(error, DamagedPickleError) else f"{type(error).__name__} in reading"
        raise DamagedPickleError(
            f"{name} is damaged or of another kind: {reason}; get a fresh copy."
        ) from None


def _mapped(source: str | os.PathLike[str] | bytes) -> memoryview:
    """Return the content; a file is mapped privately, so that tensors on it can be written to."""
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
        # Streams do not nest further: a storage holds numbers.
        machine = Machine(data, limits, _no_nested_stream, persistent_id, position)
        value = machine.run()
        position = machine.position
        return value

    def storage(identity: Any) -> Storage:
        key, found = _storage_of(identity)
        return _same(storages.setdefault(key, found), found)

    if part() != _STREAM_MAGIC or part() != _STREAM_PROTOCOL:
        raise DamagedPickleError("it is no torch.save stream")
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
        raise UnsafePickleError("it refers to an object outside the file that is no storage")
    _, dtype, key, _, numel = identity[:5]
    if len(identity) == 6 and identity[5] is not None:
        raise DamagedPickleError("a storage is a view of another")
    if not isinstance(dtype, torch.dtype) or not isinstance(key, str) or type(numel) is not int or numel < 0:
        raise DamagedPickleError("a storage has no type, key or size")
    return key, Storage(dtype, numel)


def _same(known: Storage, found: Storage) -> Storage:
    """Return the storage that is known by a key, if it is read as what it was before."""
    if (known.dtype, known.numel) != (found.dtype, found.numel):
        raise DamagedPickleError("a storage is read as two types")
    return known


def _torch_archive(data: memoryview, limits: Limits) -> Any:
    if bytes(data[:2]) != b"PK":
        return _torch_stream(data, limits)
    try:
        listed = zipfile.ZipFile(_Seekable(data)).infolist()
    except zipfile.BadZipFile:
        raise DamagedPickleError("it is truncated or altered, for its zip directory is not there") from None
    entries = {entry.filename: entry for entry in listed}
    if len(entries) < len(listed):
        raise DamagedPickleError("two of its entries have the same name")
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise DamagedPickleError("it is no torch.save archive")
    folder = pickles[0].removesuffix("data.pkl")
    order = entries.get(f"{folder}byteorder")
    if order is not None and bytes(_content(data, limits, order)) != b"little":
        raise DamagedPickleError("it is not little-endian")
    storages: dict[str, Storage] = {}

    def storage(identity: Any) -> Storage:
        key, found = _storage_of(identity)
        if key not in storages:
            found.bind(_content(data, limits, entries[f"{folder}data/{key}"]))
        return _same(storages.setdefault(key, found), found)

    pickle = _content(data, limits, entries[pickles[0]])
    return Machine(pickle, limits, _no_nested_stream, storage).run()


def _content(data: memoryview, limits: Limits, entry: zipfile.ZipInfo) -> memoryview:
    """Return the bytes of a stored zip entry where they lie, once their checksum is found right."""
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
    """The little of a file's interface that zipfile needs to read a directory."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.place = data, 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self.place = max(0, offset + (0, self.place, len(self.data))[whence])
        return self.place

    def tell(self) -> int:
        return self.place

    def read(self, count: int = -1) -> bytes:
        end = len(self.data) if count is None or count < 0 else self.place + count
        view = self.data[self.place : end]
        if len(view) > _LONGEST_DIRECTORY:
            raise DamagedPickleError("its directory is too long")
        part = bytes(view)
        self.place += len(part)
        return part


class _Finisher:
    """Puts tensors in the place of their records, in place where it can be, and checks the nesting.

    Parameters
    ----------
    depth : int
        Most levels of containers in containers.
    tensors : bool
        False leaves the records.
    """

    def __init__(self, depth: int, tensors: bool) -> None:
        self.depth, self.tensors = depth, tensors
        # By identity: the original, which is kept so that it stays its own; what it became; levels in it.
        self.made: dict[int, tuple[Any, Any, int]] = {}
        self.unfinished: set[int] = set()

    def finish(self, item: Any, level: int = 0) -> tuple[Any, int]:
        """Return what an item on some level becomes, and how many levels of containers are in it."""
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
        for place, child in holder.items() if isinstance(holder, dict) else enumerate(holder):
            holder[place], levels = self.finish(child, level + 1)
            deepest = max(deepest, levels)
        return item, 1 + deepest
