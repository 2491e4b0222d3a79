"""One file of teacher samples: safetensors, with a JSON record that carries its SHA-256."""

from __future__ import annotations

import json
import math
import os
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gas_ext._utils.files import remove_leftovers
from gas_ext._utils.records import COUNT, TEXT, Field, Fields, shown
from gas_ext._utils.sealed_files import checksum, read_sealed, write_record

FORMAT_VERSION = 1
REMEDY = "generate the samples again with repair (gas-ext teach ... --repair)"
_KEY = "gas_ext_samples"

# Required types; images and other conditions have the type that the teacher gives them.
_TYPES = {"seeds": torch.int64, "labels": torch.int64, "samples": torch.float32}

_FIELDS: Fields = {
    "run": TEXT,
    "number": COUNT,
    "nfe": Field((int, type(None)), 0),
    "prompts": Field((list, type(None)), each=TEXT),
}


def seal(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return a shard's record with its format version and the SHA-256 of record and tensors."""
    record = {"format_version": FORMAT_VERSION, **record}
    return {**record, "sha256": checksum(record, tensors)}


def write_shard(path: Path, record: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a sealed record and contiguous CPU tensors, atomically, and remove leftovers of killed processes.

    Raises OSError if the disk is full or does not accept the file.
    """
    try:
        write_record(path, _KEY, record, tensors)
    except OSError as error:
        megabytes = sum(tensor.nbytes for tensor in tensors.values()) / 1e6
        raise OSError(
            f"{path} ({megabytes:.0f} MB) could not be written: {error}; make room, then run the same "
            "command again to resume after the last shard."
        ) from error
    remove_leftovers(path)


class Shard:
    """A shard opened for reading; only the requested rows are read.

    Its `record` has "run" (hash of the settings it was made with), "number", "nfe", "prompts" and "sha256".
    Raises ValueError if the file is missing, truncated, or not a shard. Tensors are not read and may be
    damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record, mapped = read_sealed(path, _KEY, "shard", _FIELDS, version=FORMAT_VERSION, whole=False)
        self._types = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in mapped.items()}
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        size = int.from_bytes(os.pread(self._file, 8, 0), "little")
        header = json.loads(os.pread(self._file, size, 8))  # already checked by safetensors
        self._starts = {name: 8 + size + header[name]["data_offsets"][0] for name in mapped}

    @property
    def names(self) -> set[str]:
        """Names of the tensors."""
        return set(self._types)

    def check_content(self, rows: int, shapes: Mapping[str, Sequence[int] | None]) -> None:
        """Raise ValueError unless seeds and named tensors have these rows and shapes (None: absent)."""
        for name, dtype in _TYPES.items():
            found, _ = self._types.get(name, (dtype, ()))
            if found != dtype:
                raise ValueError(f"{self.path} is damaged: its {name} are {found}, not {dtype}.")
        sizes = {name: shape for name, (_, shape) in self._types.items()}
        for name, shape in {"seeds": (), **shapes}.items():
            expected = None if shape is None else (rows, *shape)
            if sizes.get(name) != expected:
                raise ValueError(
                    f"{self.path} is damaged: its {name} are {sizes.get(name)} instead of {expected}."
                )
        if self.record["prompts"] is not None:
            sizes["prompts"] = (len(self.record["prompts"]),)
        for name, size in sizes.items():
            if size[:1] != (rows,):
                raise ValueError(f"{self.path} is damaged: its {shown(name)} are not {rows}, one per sample.")

    def row(self, name: str, row: int) -> Tensor:
        """Read one row of a tensor.

        Not through a memory map: there, a file truncated while it is open would kill the process.
        """
        dtype, (_, *shape) = self._types[name]
        content = torch.empty(math.prod(shape) * dtype.itemsize, dtype=torch.uint8)
        start = self._starts[name] + row * len(content)
        if os.preadv(self._file, [content.numpy().data], start) < len(content):
            raise ValueError(f"{self.path} was truncated while it was open; {REMEDY}.")
        return content.view(dtype).reshape(shape)

    def is_intact(self) -> bool:
        """Return whether record and tensors match the SHA-256; reads everything."""
        try:
            read_sealed(self.path, _KEY, "shard", _FIELDS, version=FORMAT_VERSION)
        except ValueError:
            return False
        return True
