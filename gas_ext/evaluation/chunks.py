"""Results of a solver, sampled and stored by chunks of seeds: features, distances and times.

Each chunk is one small file, complete or absent. It records its cell (solver, network, precision, extractor)
and its seeds, so that existing results are found again, also among more seeds.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gas_ext._utils.files import write_file
from gas_ext._utils.modes import evaluating
from gas_ext._utils.noise import stacked_noise, to_uint8
from gas_ext._utils.records import COUNT, TEXT, Fields
from gas_ext._utils.sealed_files import read_sealed, write_sealed
from gas_ext.evaluation.entries import Entry
from gas_ext.evaluation.metrics import l1_distances, l2_distances, perceptual_distances, psnr_values
from gas_ext.evaluation.setup import Chunk, Setup
from gas_ext.samples.draw import SampleRun, draw_samples

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


class ChunkSampler:
    """Runs one solver on chunks of seeds."""

    def __init__(self, setup: Setup, entry: Entry) -> None:
        self.setup = setup
        self.solver = entry.solver
        self.stores_samples = entry.kind == "teacher"
        self.device = setup.denoiser.device
        self._warm = False

    def run(
        self, chunk: Chunk, teacher: Tensor | None, advance: Callable[[int], object] = lambda amount: None
    ) -> ChunkResult:
        """Sample a chunk and compare it with the teacher's samples (on the CPU; None for the teacher itself).

        `advance` is called with the number of samples after each batch.
        """
        setup = self.setup
        parts: dict[str, list[Tensor]] = defaultdict(list)
        times: list[float] = []
        for start in range(chunk.rows.start, chunk.rows.stop, setup.batch_size):
            rows = range(start, min(start + setup.batch_size, chunk.rows.stop))
            run = self._sample(rows)
            if len(rows) == setup.full_batch:
                times += run.times
            part = slice(rows.start - chunk.rows.start, rows.stop - chunk.rows.start)
            target = None if teacher is None else teacher[part].to(self.device)
            with evaluating(setup.denoiser, self.device):  # without the network's autocast
                for name, value in self._compare(run.samples.float(), target).items():
                    parts[name].append(value.cpu())
                if start == 0:
                    parts["shown"].append(self._images(run.samples[: setup.shown].float()))
            advance(len(rows))
        on_cuda = self.device.type == "cuda"
        record = {
            "nfe": run.nfe,
            "ms_per_image": times,
            "device": torch.cuda.get_device_name(self.device) if on_cuda else self.device.type,
            "threads": torch.get_num_threads() if self.device.type == "cpu" else None,
        }
        return ChunkResult(record, {name: torch.cat(values).contiguous() for name, values in parts.items()})

    def _sample(self, rows: range) -> SampleRun:
        """Sample a batch; noise and conditions are ready before the clock starts."""
        setup, denoiser = self.setup, self.setup.denoiser
        noise = stacked_noise(setup.seeds[rows.start : rows.stop], denoiser.sample_shape, device=self.device)
        condition = setup.condition(rows)
        if isinstance(condition, Tensor):
            condition = condition.to(self.device)
        with evaluating(denoiser, self.device, setup.autocast):
            run = draw_samples(
                self.solver,
                denoiser,
                noise,
                denoiser.encode_condition(condition),
                guidance_scale=setup.guidance_scale,
                batch_size=len(rows),
                warm_up=not self._warm,
            )
        self._warm = True
        return run

    def _compare(self, samples: Tensor, teacher: Tensor | None) -> dict[str, Tensor]:
        """Return distances and features of a batch; all except L1 and L2 are of the decoded images."""
        setup = self.setup
        images = setup.denoiser.decode(samples).float()
        found = {features_name(extractor.name): extractor(images) for extractor in setup.extractors}
        if self.stores_samples:
            found["samples"] = samples
        if teacher is not None:
            target = setup.denoiser.decode(teacher).float()
            found["l1"] = l1_distances(samples, teacher)
            found["l2"] = l2_distances(samples, teacher)
            found["psnr"] = psnr_values(images, target)
            if setup.perceptual:
                found["perceptual"] = perceptual_distances(images, target, setup.feature_maps())
        return found

    def _images(self, samples: Tensor) -> Tensor:
        """Return images as uint8, or an empty tensor if the samples are not images."""
        images = self.setup.denoiser.decode(samples).float()
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            return torch.zeros(0, 1, 1, 1, dtype=torch.uint8)
        return to_uint8(images.nan_to_num(0.0), truncate=self.setup.denoiser.truncates).cpu()
