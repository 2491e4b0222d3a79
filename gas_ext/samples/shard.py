"""One file of teacher samples: safetensors, with a JSON record that carries its SHA-256."""

from __future__ import annotations

import json
import math
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from gas_ext._utils.files import remove_leftovers, write_file
from gas_ext._utils.records import COUNT, TEXT, Field, Fields, check_record, shown
from gas_ext._utils.sealed_files import checksum

FORMAT_VERSION = 1
_KEY = "gas_ext_samples"

# All that safetensors writes.
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}

# What is written under these names; images and other conditions are as the teacher makes them.
_TYPES = {"seeds": torch.int64, "labels": torch.int64, "samples": torch.float32}

_FIELDS: Fields = {
    "run": TEXT,
    "number": COUNT,
    "nfe": Field((int, type(None)), 0),
    "prompts": Field((list, type(None)), each=TEXT),
    "sha256": TEXT,
}


def seal(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return a shard's record with its format version and the SHA-256 over record and tensors."""
    record = {"format_version": FORMAT_VERSION, **record}
    return {**record, "sha256": checksum(record, tensors)}


def write_shard(path: Path, record: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a shard, which appears only when it is complete, and clear away what earlier attempts left.

    Parameters
    ----------
    path : Path
        The file.
    record : dict
        What `seal` returned.
    tensors : mapping
        Contiguous tensors on the CPU.

    Raises
    ------
    OSError
        If the disk is full, or does not take the file for another reason.
    """
    try:
        write_file(path, serialize(dict(tensors), {_KEY: json.dumps(record)}))
    except OSError as error:
        megabytes = sum(tensor.nbytes for tensor in tensors.values()) / 1e6
        raise OSError(
            f"{path} ({megabytes:.0f} MB) could not be written: {error}; once there is room, run the same "
            "again, and it goes on after the last shard."
        ) from error
    remove_leftovers(path)


class TensorFile(Mapping[str, Tensor]):
    """The tensors of a safetensors file, each read when it is asked for.

    They are not mapped into memory: a file that is cut off while it is open then raises an error instead of
    ending the process.

    Parameters
    ----------
    path : Path
        The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with safe_open(path, framework="pt") as file:  # which finds whether the header describes the file
            self.metadata: dict[str, str] = file.metadata() or {}
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self._start = 8 + int.from_bytes(self._read(0, 8).numpy().tobytes(), "little")
        header = json.loads(self._read(8, self._start - 8).numpy().tobytes())
        self._entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        for entry in self._entries.values():
            entry["dtype"] = _DTYPES[entry["dtype"]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, name: str) -> Tensor:
        entry = self._entries[name]
        first, last = entry["data_offsets"]
        tensor: Tensor = self._read(self._start + first, last - first).view(entry["dtype"])
        return tensor.reshape(entry["shape"])

    def row(self, name: str, row: int) -> Tensor:
        """Read one row of a tensor."""
        entry = self._entries[name]
        shape = entry["shape"][1:]
        size = math.prod(shape) * entry["dtype"].itemsize
        tensor: Tensor = self._read(self._start + entry["data_offsets"][0] + row * size, size)
        return tensor.view(entry["dtype"]).reshape(shape)

    def described(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Return dtype and shape of a tensor."""
        return self._entries[name]["dtype"], tuple(self._entries[name]["shape"])

    def _read(self, start: int, size: int) -> Tensor:
        """Return bytes of the file as uint8."""
        content = torch.empty(size, dtype=torch.uint8)
        view, done = content.numpy().data, 0
        while done < size:
            count = os.preadv(self._file, [view[done:]], start + done)
            if count == 0:
                raise ValueError(f"{self.path} was cut off while it was open; make it again, with repair.")
            done += count
        return content


class Shard:
    """A shard opened for reading; only the rows that are asked for are read.

    Parameters
    ----------
    path : Path
        The file.

    Attributes
    ----------
    record : dict
        "run" (hash of the settings it was made with), "number", "nfe", "prompts", "sha256".

    Raises
    ------
    ValueError
        If the file is missing, cut off, or no shard. Its tensors are not read, and may be damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise ValueError(f"{path} is missing.")
        try:
            self._tensors = TensorFile(path)
            record = json.loads(self._tensors.metadata[_KEY])
        except (SafetensorError, OSError, ValueError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is no shard of samples, or its header is damaged ({error}).") from error
        version = record.get("format_version") if isinstance(record, dict) else None
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{path} has shard format {shown(version)}, but this gas_ext reads format {FORMAT_VERSION}."
            )
        self.record = check_record(record, _FIELDS, path)

    @property
    def names(self) -> set[str]:
        """Names of the tensors."""
        return set(self._tensors)

    def __len__(self) -> int:
        return self._tensors.described("seeds")[1][0]

    def check_content(self, rows: int, shapes: Mapping[str, Sequence[int] | None]) -> None:
        """Raise ValueError unless the shard holds so many rows, and tensors of these shapes.

        Parameters
        ----------
        rows : int
            Number of samples.
        shapes : mapping
            Shape of one row of some tensors; None where there must be no such tensor.
        """
        for name, dtype in _TYPES.items():
            if name in self._tensors and self._tensors.described(name)[0] != dtype:
                found = self._tensors.described(name)[0]
                raise ValueError(f"{self.path} is damaged: its {name} are {found}, not {dtype}.")
        for name, shape in {"seeds": (), **shapes}.items():
            wanted = None if shape is None else (rows, *shape)
            there = self._tensors.described(name)[1] if name in self._tensors else None
            if there != wanted:
                raise ValueError(f"{self.path} is damaged: its {name} are {there} instead of {wanted}.")
        counts = {name: self._tensors.described(name)[1][:1] for name in self._tensors}
        if self.record["prompts"] is not None:
            counts["prompts"] = (len(self.record["prompts"]),)
        for name, count in counts.items():
            if count != (rows,):
                raise ValueError(f"{self.path} is damaged: its {shown(name)} are not {rows}, one per sample.")

    def row(self, name: str, row: int) -> Tensor:
        """Read one row of a tensor."""
        return self._tensors.row(name, row)

    def is_intact(self) -> bool:
        """Say whether record and tensors match the SHA-256; reads everything."""
        return bool(checksum(self.record, self._tensors) == self.record["sha256"])
