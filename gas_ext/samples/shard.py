"""One file of teacher samples: safetensors, with a JSON record that carries its SHA-256."""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from gas_ext._utils.files import remove_leftovers, write_file
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

_FIELDS: dict[str, type | tuple[type, ...]] = {
    "run": str,
    "number": int,
    "nfe": (int, type(None)),
    "prompts": (list, type(None)),
    "sha256": str,
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


class Shard:
    """A shard opened for reading, mapped into memory; rows are copied, and nothing else stays in memory.

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
            self.record = json.loads(_checked_metadata(path)[_KEY])
            self._map, self._tensors = _map_tensors(path)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise ValueError(f"{path} is no shard of samples, or its header is damaged ({error}).") from error
        self._check_record()

    def _check_record(self) -> None:
        record = self.record
        version = record.get("format_version") if isinstance(record, dict) else None
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{self.path} has shard format {version!r}, but this gas_ext reads format {FORMAT_VERSION}."
            )
        for name, kind in _FIELDS.items():
            if not isinstance(record.get(name, ...), kind):
                raise ValueError(f"{self.path} has a damaged header: {name!r} is missing or no such value.")

    @property
    def names(self) -> set[str]:
        """Names of the tensors."""
        return set(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors["seeds"])

    def row(self, name: str, row: int) -> Tensor:
        """Read one row of a tensor."""
        copy = self._tensors[name][row].clone()
        self._let_go()
        return copy

    def is_intact(self) -> bool:
        """Say whether record and tensors match the SHA-256; reads everything."""
        intact = checksum(self.record, self._tensors) == self.record["sha256"]
        self._let_go()
        return bool(intact)

    def _let_go(self) -> None:
        """Take the pages that were read out of this process; the system keeps them as it sees fit."""
        if hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED)


def _checked_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file, once its header is found to describe the file."""
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def _map_tensors(path: Path) -> tuple[mmap.mmap, dict[str, Tensor]]:
    """Map a safetensors file and return its tensors where they lie.

    The library maps files too, but then pages that were read stay in the process.
    """
    with open(path, "rb") as file:
        # A private map is writable, as torch wants it; nothing writes to it.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    start = 8 + int.from_bytes(mapped[:8], "little")
    header = json.loads(mapped[8:start])
    content = torch.frombuffer(mapped, dtype=torch.uint8)[start:]
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            tensors[name] = content[first:last].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return mapped, tensors
