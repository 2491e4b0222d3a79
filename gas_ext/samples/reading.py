"""Reading teacher samples: any rows in any order, without loading the others."""

from __future__ import annotations

import functools
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from gas_ext._utils.checks import path_of, whole_numbers
from gas_ext._utils.noise import stacked_noise
from gas_ext._utils.seeds import SeedList
from gas_ext.denoisers import Denoiser
from gas_ext.samples.filling import SampleFolder, verify_samples
from gas_ext.samples.manifest import MANIFEST, first_noise
from gas_ext.samples.shard import REMEDY

_OPEN_SHARDS = 64  # cached; each holds one file descriptor

Indices: TypeAlias = Sequence[int] | Tensor


class SampleBatch(NamedTuple):
    """A batch of teacher samples.

    Attributes
    ----------
    noise : Tensor
        (B, *sample_shape) float32, the initial states.
    samples : Tensor
        (B, *sample_shape) float32, the teacher's states at its last time: images or latents.
    condition : Tensor, list of str or None
        Labels (B,) int64, prompts, or other conditions (B, ...), as `Denoiser.encode_condition` takes them.
    images : Tensor or None
        (B, *image_shape), decoded samples if they were stored.
    seeds : Tensor or None
        (B,) int64, if known.
    """

    noise: Tensor
    samples: Tensor
    condition: Tensor | list[str] | None
    images: Tensor | None
    seeds: Tensor | None

    def to(self, device: str | torch.device) -> SampleBatch:
        """Return the batch on a device; the seeds stay where they are."""
        condition = self.condition.to(device) if isinstance(self.condition, Tensor) else self.condition
        images = None if self.images is None else self.images.to(device)
        return SampleBatch(self.noise.to(device), self.samples.to(device), condition, images, self.seeds)


class SampleSource(Protocol):
    """A source of teacher samples for training."""

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample, without the batch."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def batch(self, indices: Indices, *, images: bool = True) -> SampleBatch:
        """Load the samples at these indices, with or without decoded images."""


class TeacherSamples:
    """A folder written by `generate_samples`, opened for reading; see `open`.

    Only the requested rows are read; their noise is drawn again. Copies in other processes, such as the
    workers of a data loader, reopen the folder.
    """

    def __init__(self, folder: SampleFolder) -> None:
        self._folder = folder
        self._shard = functools.lru_cache(_OPEN_SHARDS)(folder.shard)

    @classmethod
    def open(cls, folder: str | os.PathLike[str], verify: bool = False) -> TeacherSamples:
        """Open a complete folder.

        Parameters
        ----------
        folder : path
            A folder written by `generate_samples` or ``gas-ext teach``.
        verify : bool, default False
            Read everything and compare it with its SHA-256 first.

        Raises
        ------
        ValueError
            If the folder is missing or incomplete, a shard is missing or has another size than in the
            manifest, this torch draws different noise, or (with `verify`) a shard is damaged.
        """
        opened = SampleFolder.open(path_of("folder", folder))
        if verify:
            damaged = verify_samples(folder, rank=0, world_size=1)
            if damaged:
                faults = ", ".join(f"{name} {damage}" for name, damage in damaged.items())
                raise ValueError(f"In {folder}, {faults}; {REMEDY}.")
        samples = cls(opened)
        samples._check_complete()
        opened.manifest.check_noise(first_noise(samples.seeds, samples.sample_shape), opened.path)
        return samples

    def _check_complete(self) -> None:
        listed = self._folder.manifest.shards
        if listed is None or not self.complete:
            missing = len(self.missing())
            lacks = f"{missing} of {self._folder.shards} shards" if missing else f"their list in {MANIFEST}"
            raise ValueError(
                f"{self.path} is not complete, it lacks {lacks}; run the command that generates the samples "
                "again to resume."
            )
        for name, entry in listed.items():
            path = self.path / name
            size = path.stat().st_size if path.is_file() else None
            if size != entry["bytes"]:
                fault = "is missing" if size is None else f"has {size} bytes instead of {entry['bytes']}"
                raise ValueError(f"{path} {fault}; {REMEDY}.")

    @property
    def path(self) -> Path:
        """The folder."""
        return self._folder.path

    @property
    def settings(self) -> dict[str, Any]:
        """Everything the samples depend on: teacher, solver, seeds, ..., as in the manifest."""
        return self._folder.manifest.settings

    @property
    def seeds(self) -> SeedList:
        """Seeds of all samples, in their order."""
        return self._folder.seeds

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.settings["sample_shape"])

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """Shape of one decoded image; None if images were not stored."""
        shape = self.settings["image_shape"]
        return None if shape is None else tuple(shape)

    @property
    def nfe(self) -> int | None:
        """Counted network evaluations per sample; None while not complete."""
        return self._folder.manifest.nfe

    @property
    def complete(self) -> bool:
        """Whether all shards exist and are listed in the manifest."""
        return self._folder.manifest.complete

    def settings_of(self, count: int) -> dict[str, Any]:
        """Return the settings with which the folder first held so many samples, before it grew."""
        stages = self._folder.manifest.stages
        return next((stage for stage in stages if stage["samples"] >= count), stages[-1])

    def missing(self) -> list[str]:
        """Return the names of shards that are missing, truncated, or of other settings."""
        folder = self._folder
        return [
            folder.shard_path(number).name
            for number in range(folder.shards)
            if folder.damage(number, contents=False) is not None
        ]

    def check_teacher(self, denoiser: Denoiser) -> None:
        """Raise ValueError unless a denoiser is the teacher that generated the samples.

        A converted data set does not name its teacher; only shape and conditions are compared.
        """
        made_by = self.settings["teacher"]
        found = (list(self.sample_shape), made_by["condition_kind"])
        expected = (list(denoiser.sample_shape), denoiser.condition_kind)
        if found != expected:
            raise ValueError(
                f"{self.path} holds samples of shape {found[0]} with conditions of type {found[1]!r}, but "
                f"{denoiser.name!r} generates {expected[0]} with {expected[1]!r}; load their teacher."
            )
        if self.settings["solver"] is None:
            return
        if (made_by["name"], made_by["weights_hash"]) != (denoiser.name, denoiser.weights_hash):
            raise ValueError(
                f"{self.path} was made by the teacher {made_by['name']!r} (weights "
                f"{made_by['weights_hash'][:12] or 'unknown'}), not by {denoiser.name!r} (weights "
                f"{denoiser.weights_hash[:12] or 'unknown'}); load that teacher, or generate other samples."
            )

    def __len__(self) -> int:
        return len(self.seeds)

    def __reduce__(self) -> tuple[Any, ...]:
        return TeacherSamples, (SampleFolder(self._folder.path, self._folder.manifest),)

    def batch(self, indices: Indices, *, images: bool = True) -> SampleBatch:
        """Load the samples at these indices, in this order, and draw their noise.

        Parameters
        ----------
        indices : sequence of int or int64 Tensor
            At least one index from 0 to ``len(self) - 1``; repetitions are allowed.
        images : bool, default True
            Load decoded images; a loss on latents does not need them.

        Raises
        ------
        IndexError
            If an index is out of range.
        ValueError
            If a shard is missing or is not the one that the manifest lists.
        """
        positions = check_indices(indices, len(self))
        seeds = [self.seeds[index] for index in positions]
        skipped = {"seeds"} if images else {"seeds", "images"}
        parts: dict[str, list[Tensor]] = defaultdict(list)
        prompts: list[str] = []
        for index in positions:
            number, row = self._folder.find(index)
            shard = self._shard(number)
            for name in shard.names - skipped:
                parts[name].append(shard.row(name, row))
            if shard.record["prompts"] is not None:
                prompts.append(shard.record["prompts"][row])
        whole = {name: torch.stack(rows) for name, rows in parts.items()}
        check_finite(whole, self.path)
        return SampleBatch(
            noise=stacked_noise(seeds, self.sample_shape),
            samples=whole["samples"],
            condition=prompts or whole.get("labels", whole.get("conditions")),
            images=whole.get("images"),
            seeds=torch.tensor(seeds, dtype=torch.int64),
        )


def check_finite(tensors: Mapping[str, Tensor], source: Path) -> None:
    """Raise ValueError if loaded samples or images are not finite."""
    for name in ("samples", "images"):
        if name in tensors and not bool(torch.isfinite(tensors[name]).all()):
            raise ValueError(f"{source} holds {name} that are not finite; {REMEDY}, or get a fresh copy.")


def check_indices(indices: Indices, length: int) -> list[int]:
    """Return indices as a list; an error unless there is at least one and all are from 0 to length - 1."""
    if isinstance(indices, Tensor) and (indices.dtype.is_floating_point or indices.dtype == torch.bool):
        raise TypeError(f"The indices are {indices.dtype}, but must be integers.")
    positions = whole_numbers("indices", indices)
    if not positions:
        raise ValueError("There are no indices; give at least one.")
    for index in positions:
        if not 0 <= index < length:
            raise IndexError(f"There is no sample {index}; expected 0 to {length - 1}.")
    return positions
