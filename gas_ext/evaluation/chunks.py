"""Results of a solver on disk, one small file per chunk of seeds: features, distances, times, no samples.

A file is complete or absent. It names the cell (solver, network, precision, extractor) and the seeds that it
belongs to, so existing results are found again, also among more seeds.
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
_CELL = "cell.json"
_FIELDS: Fields = {"cell": TEXT, "chunk": TEXT, "nfe": COUNT}
_STALE = 3600.0  # seconds after which nobody is writing a file any more


@dataclass(frozen=True)
class ChunkResult:
    """Results of one chunk.

    Parameters
    ----------
    record : dict
        "nfe", "ms_per_image" (one number per full batch), "device" and "threads".
    tensors : dict
        "l1", "l2", "psnr", "perceptual": (B,) float64; `features_name`: (B, F) float32 of each extractor;
        "shown": the first images as uint8; and, of the teacher alone, "samples".
    """

    record: dict[str, Any]
    tensors: dict[str, Tensor]


def features_name(extractor: str) -> str:
    """Return the name of the tensor of an extractor's features.

    Examples
    --------
    >>> features_name("demo")
    'features.demo'
    """
    return f"features.{extractor}"


class CellFolder:
    """The chunks of one solver; see `gas_ext.evaluation.setup.cell_identity`.

    Parameters
    ----------
    path : Path
        The folder, named after the cell's identity.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def describe(self, content: dict[str, Any]) -> None:
        """Describe in cell.json, for readers, what the folder holds."""
        write_file(self.path / _CELL, (json.dumps(content, indent=2) + "\n").encode())

    def chunk_path(self, chunk: Chunk) -> Path:
        """Return the file of a chunk."""
        return self.path / f"chunk-{chunk.identity}.safetensors"

    def write(self, chunk: Chunk, result: ChunkResult) -> None:
        """Keep a chunk; its file appears only when it is complete."""
        record = {
            "format_version": FORMAT_VERSION,
            "cell": self.path.name,
            "chunk": chunk.identity,
            **result.record,
        }
        path = self.chunk_path(chunk)
        try:
            write_sealed(path, _KEY, record, result.tensors)
        except OSError as error:
            megabytes = sum(tensor.nbytes for tensor in result.tensors.values()) / 1e6
            raise OSError(
                f"{path} ({megabytes:.0f} MB) could not be written: {error}; free some space and run the "
                "same command again to resume."
            ) from error

    def read(self, chunk: Chunk) -> ChunkResult | None:
        """Return a chunk, or None if it is not there, is damaged or belongs to something else."""
        path = self.chunk_path(chunk)
        if not path.is_file():
            return None
        try:
            record, tensors = read_sealed(path, _KEY, "chunk", _FIELDS, version=FORMAT_VERSION)
        except ValueError:
            return None
        ours = (record["cell"], record["chunk"]) == (self.path.name, chunk.identity)
        return ChunkResult(record, tensors) if ours else None

    def clear_leftovers(self) -> None:
        """Remove what killed processes were writing; what others are writing is newer."""
        for path in self.path.glob(".*"):
            with suppress(FileNotFoundError):  # another process was faster
                if time.time() - path.stat().st_mtime > _STALE:
                    path.unlink()

    @contextmanager
    def mapped(self, name: str, chunks: Sequence[Chunk]) -> Iterator[np.ndarray[Any, np.dtype[np.float32]]]:
        """Give one float32 array of all chunks, mapped from a temporary file: it need not fit in memory."""
        rows = 0
        shape: tuple[int, ...] = ()
        with tempfile.TemporaryFile(dir=self.path) as file:
            for chunk in chunks:
                part = self.require(chunk).tensors[name].to(torch.float32).contiguous()
                file.write(part.numpy().tobytes())
                rows, shape = rows + len(part), tuple(part.shape[1:])
            file.flush()
            yield np.memmap(file, dtype=np.float32, mode="r", shape=(rows, *shape))

    def require(self, chunk: Chunk) -> ChunkResult:
        """Return a chunk that was there before; ValueError if it has gone."""
        result = self.read(chunk)
        if result is None:
            raise ValueError(
                f"{self.chunk_path(chunk)} has vanished or is damaged; run the same command again."
            )
        return result
