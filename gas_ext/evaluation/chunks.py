"""Results of a solver on disk, one small file per chunk of seeds: features, distances and times.

A file is complete or absent. It records its cell (solver, network, precision, extractor) and its seeds, so
that existing results are found again, also among more seeds.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gas_ext._utils.files import write_file
from gas_ext._utils.records import COUNT, TEXT, Fields
from gas_ext._utils.sealed_files import read_sealed, write_sealed
from gas_ext.evaluation.setup import Chunk

FORMAT_VERSION = 1
_KEY = "gas_ext_chunk"
_FIELDS: Fields = {"cell": TEXT, "chunk": TEXT, "nfe": COUNT}
_STALE = 3600.0  # seconds after which no process is still writing a file


@dataclass(frozen=True)
class ChunkResult:
    """Results of one chunk.

    `record` holds "nfe", "ms_per_image" (one number per full batch), "device" and "threads"; `tensors` holds
    "l1", "l2", "psnr", "perceptual" (B,) in float64, `features_name` (B, F) in float32 for each extractor,
    "shown" (the first images, uint8) and, only for the teacher, "samples".
    """

    record: dict[str, Any]
    tensors: dict[str, Tensor]


def features_name(extractor: str) -> str:
    """Return the name of the tensor with an extractor's features."""
    return f"features.{extractor}"


class CellFolder:
    """The chunks of one solver, in a folder named after `Setup.cell_identity`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def describe(self, content: dict[str, Any]) -> None:
        """Write cell.json, which describes the folder to readers."""
        write_file(self.path / "cell.json", (json.dumps(content, indent=2) + "\n").encode())

    def chunk_path(self, chunk: Chunk) -> Path:
        """Return the file of a chunk."""
        return self.path / f"chunk-{chunk.identity}.safetensors"

    def write(self, chunk: Chunk, result: ChunkResult) -> None:
        """Store a chunk; its file appears only when it is complete."""
        identity = {"format_version": FORMAT_VERSION, "cell": self.path.name, "chunk": chunk.identity}
        path = self.chunk_path(chunk)
        try:
            write_sealed(path, _KEY, {**identity, **result.record}, result.tensors)
        except OSError as error:
            megabytes = sum(tensor.nbytes for tensor in result.tensors.values()) / 1e6
            raise OSError(
                f"{path} ({megabytes:.0f} MB) could not be written: {error}; free some space and run the "
                "same command again to resume."
            ) from error

    def read(self, chunk: Chunk) -> ChunkResult | None:
        """Return a chunk, or None if it is missing, damaged or belongs to another cell or other seeds."""
        path = self.chunk_path(chunk)
        if not path.is_file():
            return None
        try:
            record, tensors = read_sealed(path, _KEY, "chunk", _FIELDS, version=FORMAT_VERSION)
        except ValueError:
            return None
        ours = (record["cell"], record["chunk"]) == (self.path.name, chunk.identity)
        return ChunkResult(record, tensors) if ours else None

    def require(self, chunk: Chunk) -> ChunkResult:
        """Return a chunk that was written before; ValueError if it is gone."""
        result = self.read(chunk)
        if result is None:
            raise ValueError(f"{self.chunk_path(chunk)} is missing or damaged; run the same command again.")
        return result

    def clear_leftovers(self) -> None:
        """Remove the partial files of killed processes; those of running ones are newer."""
        for path in self.path.glob(".*"):
            with suppress(FileNotFoundError):  # another process was faster
                if time.time() - path.stat().st_mtime > _STALE:
                    path.unlink()

    @contextmanager
    def mapped(self, name: str, chunks: Sequence[Chunk]) -> Iterator[np.ndarray[Any, np.dtype[np.float32]]]:
        """Yield one float32 array of all chunks, mapped from a temporary file: it need not fit in memory."""
        rows = 0
        shape: tuple[int, ...] = ()
        with tempfile.TemporaryFile(dir=self.path) as file:
            for chunk in chunks:
                part = self.require(chunk).tensors[name].to(torch.float32).contiguous()
                file.write(part.numpy().tobytes())
                rows, shape = rows + len(part), tuple(part.shape[1:])
            file.flush()
            yield np.memmap(file, dtype=np.float32, mode="r", shape=(rows, *shape))
