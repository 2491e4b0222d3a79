"""Whole files: raw pickles, zip archives of torch.save, and its older single-stream form."""

from __future__ import annotations

import mmap
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from gas_ext.safe_pickle.errors import DamagedPickleError, Limits, UnsafePickleError
from gas_ext.safe_pickle.machine import Machine
from gas_ext.safe_pickle.objects import PickledObject, PickledTensor, Storage

_STREAM_MAGIC = 0x1950A86A20F9469CFC6C  # first value of the single-stream form of torch.save
_STREAM_PROTOCOL = 1001
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # of a zip entry

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
        dict, list, tuple, set, str, int, float, bytes, None, torch.Tensor, torch.dtype, and `PickledObject`
        records of everything that is an instance of a class.

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
    in such files as dictionary keys, become `PickledGlobal`.

    Examples
    --------
    >>> import io
    >>> file = io.BytesIO()
    >>> torch.save({"weight": torch.zeros(2)}, file)
    >>> read_torch_archive(file.getvalue())
    {'weight': tensor([0., 0.])}
    """
    return _read(source, limits, tensors, _torch_archive)


def _read(source: Any, limits: Limits | None, tensors: bool, form: Any) -> Any:
    # A copy: reading counts the limits down.
    limits = Limits(**vars(limits)) if limits else Limits()
    name = "The pickle" if isinstance(source, bytes) else str(source)
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise FileNotFoundError(f"There is no file {source}.")
    depth = limits.depth
    try:
        value = form(_mapped(source), limits)
        return _finished(value, depth, tensors)
    except UnsafePickleError as error:
        raise UnsafePickleError(
            f"{name} is refused: {error}; only files of the known kinds are read, and nothing in them is run."
        ) from None
    except _FAULTS as error:
        reason = str(error) if isinstance(error, DamagedPickleError) else f"{type(error).__name__} in reading"
        raise DamagedPickleError(
            f"{name} is damaged or of another kind: {reason}; get a fresh copy."
        ) from None


def _mapped(source: Any) -> memoryview:
    """Return the content; a file is mapped privately, so that tensors on it can be written to."""
    if isinstance(source, bytes):
        return memoryview(bytearray(source))
    with open(source, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise DamagedPickleError("it is empty")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))


def _raw_pickle(data: memoryview, limits: Limits) -> Any:
    return Machine(data, limits, _nested_stream(limits)).run()


def _nested_stream(limits: Limits) -> Any:
    """Return the builder for torch.storage._load_from_bytes."""

    def load_from_bytes(data: Any) -> Any:
        limits.streams -= 1
        if limits.streams < 0:
            raise DamagedPickleError("it has too many storages")
        if isinstance(data, bytes):
            data = memoryview(bytearray(data))
        if not isinstance(data, memoryview):
            raise DamagedPickleError("a storage is not made of bytes")
        return _torch_stream(data, limits)

    return load_from_bytes


def _torch_stream(data: memoryview, limits: Limits) -> Any:
    """Read the single-stream form: five pickles, then each storage as a count and its elements."""
    storages: dict[str, Storage] = {}
    position = 0

    def part(persistent_id: Any = None) -> Any:
        nonlocal position
        # Streams do not nest further: a storage holds numbers.
        machine = Machine(data, limits, _no_nested_stream, persistent_id, position)
        value = machine.run()
        position = machine.position
        return value

    def storage(identity: Any) -> Storage:
        key, found = _storage_of(identity)
        return storages.setdefault(key, found)

    if part() != _STREAM_MAGIC or part() != _STREAM_PROTOCOL:
        raise DamagedPickleError("it is no torch.save stream")
    system = part()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise DamagedPickleError("it is not little-endian")
    value = part(storage)
    for key in part():
        count = struct.unpack("<q", data[position : position + 8])[0]
        found = storages[key]
        if count != found.numel:
            raise DamagedPickleError("a storage has another size than announced")
        position += 8
        found.bind(data[position:])
        position += count * found.dtype.itemsize
    return value


def _no_nested_stream(data: Any) -> Any:
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


def _torch_archive(data: memoryview, limits: Limits) -> Any:
    if bytes(data[:2]) != b"PK":
        return _torch_stream(data, limits)
    archive = zipfile.ZipFile(_Seekable(data))
    entries = {entry.filename: entry for entry in archive.infolist()}
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise DamagedPickleError("it is no torch.save archive")
    folder = pickles[0].removesuffix("data.pkl")
    order = entries.get(f"{folder}byteorder")
    if order is not None and bytes(_content(data, order)) != b"little":
        raise DamagedPickleError("it is not little-endian")
    storages: dict[str, Storage] = {}

    def storage(identity: Any) -> Storage:
        key, found = _storage_of(identity)
        if key not in storages:
            found.bind(_content(data, entries[f"{folder}data/{key}"]))
            storages[key] = found
        elif (storages[key].dtype, storages[key].numel) != (found.dtype, found.numel):
            raise DamagedPickleError("a storage is read as two types")
        return storages[key]

    pickle = _content(data, entries[pickles[0]])
    return Machine(pickle, limits, _no_nested_stream, storage).run()


def _content(data: memoryview, entry: zipfile.ZipInfo) -> memoryview:
    """Return the bytes of a stored zip entry where they lie, once their checksum is found right."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        raise DamagedPickleError("it is compressed, which torch.save does not do")
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
        part = bytes(self.data[self.place : end])
        self.place += len(part)
        return part


def _finished(value: Any, depth: int, tensors: bool) -> Any:
    """Turn tensor records into tensors, level by level, and check the depth."""
    made: dict[int, tuple[Any, Any]] = {}  # by identity; the original is kept, so that it stays its own

    def convert(item: Any) -> Any:
        if not tensors or not isinstance(item, (PickledTensor, tuple)) or item == ():
            return item
        if id(item) not in made:
            whole = item.tensor() if isinstance(item, PickledTensor) else tuple(map(convert, item))
            made[id(item)] = (item, whole)
        return made[id(item)][1]

    value = convert(value)
    level, seen = [value], {id(value)}
    for _ in range(depth):
        following: list[Any] = []
        for parent in level:
            for child in _convert_children(parent, convert):
                if id(child) not in seen:
                    seen.add(id(child))
                    following.append(child)
        if not following:
            return value
        level = following
    raise DamagedPickleError(f"its values are nested deeper than {depth}")


def _convert_children(parent: Any, convert: Any) -> list[Any]:
    """Convert what a container holds, in place, and return those children that are containers."""
    if isinstance(parent, PickledObject):
        parent = parent.state
    if type(parent) is dict:
        for key, child in parent.items():
            parent[key] = convert(child)
        children = list(parent.values())
    elif type(parent) is list:
        parent[:] = [convert(child) for child in parent]
        children = parent
    else:
        children = list(parent) if type(parent) is tuple else []
    return [child for child in children if isinstance(child, (dict, list, tuple, PickledObject))]
