"""Teacher samples as published with the GS/GAS paper: one pickle, ``dataset.pkl``."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gas_ext._utils.checks import path_of, whole_number
from gas_ext._utils.files import file_hash
from gas_ext._utils.noise import stacked_noise
from gas_ext._utils.progress import Advance, Reporter
from gas_ext._utils.seeds import format_seeds, parse_seeds
from gas_ext.configs import Config
from gas_ext.safe_pickle import PickledTensor, read_pickle
from gas_ext.samples.filling import Content, SampleFolder, fill
from gas_ext.samples.generate import default_shard_size
from gas_ext.samples.manifest import Manifest, first_noise, plain
from gas_ext.samples.reading import Indices, SampleBatch, TeacherSamples, check_finite, check_indices

_PUBLISHED_SEEDS = range(50_000)
_KEYS = ("noise", "latents", "images", "condition")


class ReferenceDataset:
    """A published ``dataset.pkl``, read row by row without executing anything in it.

    It has the interface of `TeacherSamples`. The file stores the noise but not the seeds, which
    `convert_dataset` recovers. Rows are sorted by the file names of their chunks as text (0, 1024, 10240,
    2048, ...), not by seed.

    Parameters
    ----------
    path : path
        The pickle.

    Raises
    ------
    ValueError
        If it is damaged, is not a data set, or names an unknown class or function.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path_of("path", path)
        content = read_pickle(path, tensors=False)
        if not isinstance(content, dict) or not set(_KEYS) <= content.keys():
            raise ValueError(f"{path} is not a data set of teacher samples; expected {', '.join(_KEYS)}.")
        self._size = self.path.stat().st_size
        self._noise = self._tensor("noise", content["noise"])
        latents = self._rows(content["latents"], "latents")
        images = self._rows(content["images"], "images")
        samples = images if latents is None else latents  # pixel models have no latents
        if samples is None:
            raise ValueError(f"{path} holds neither latents nor images; get a fresh copy.")
        if samples.shape != self._noise.shape:
            raise ValueError(f"{path} is damaged: its samples have another shape than its noise.")
        self._samples = samples
        self._images = None if latents is None else images
        self._condition = self._conditions(content["condition"])

    def _tensor(self, name: str, value: Any) -> PickledTensor:
        if not isinstance(value, PickledTensor) or not value.shape:
            raise ValueError(f"{self.path} is damaged: its entry {name!r} is not a tensor.")
        if 0 in value.shape:  # other sizes may be anything: no data in the file backs them
            raise ValueError(f"{self.path} is damaged: its {name} are empty, of shape {value.shape}.")
        if name in ("noise", "latents") and value.dtype != torch.float32:
            raise ValueError(f"{self.path} is damaged: its {name} are {value.dtype}, not torch.float32.")
        return value

    def _rows(self, value: Any, name: str) -> PickledTensor | None:
        """Return a tensor with one row per sample; None if it is absent, which is a list of None."""
        if isinstance(value, list) and all(entry is None for entry in value):
            return None
        tensor = self._tensor(name, value)
        if tensor.shape[0] != len(self):
            raise ValueError(
                f"{self.path} is damaged: it has {tensor.shape[0]} {name} for {len(self)} samples of noise."
            )
        return tensor

    def _conditions(self, value: Any) -> PickledTensor | list[str] | None:
        if isinstance(value, list) and value and all(isinstance(entry, str) for entry in value):
            if len(value) != len(self):
                raise ValueError(f"{self.path} is damaged: {len(value)} prompts for {len(self)} samples.")
            return value
        return self._rows(value, "conditions")

    def __len__(self) -> int:
        return self._noise.shape[0]

    def __reduce__(self) -> tuple[Any, ...]:
        return ReferenceDataset, (self.path,)  # copies in other processes reopen the file

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self._noise.shape[1:]

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """Shape of one decoded image; None if the samples are images themselves."""
        return None if self._images is None else self._images.shape[1:]

    @property
    def condition_kind(self) -> str:
        """Return "none", "label" or "prompt"."""
        if self._condition is None:
            return "none"
        return "prompt" if isinstance(self._condition, list) else "label"

    def batch(self, indices: Indices, *, images: bool = True) -> SampleBatch:
        """Load the samples at these indices; parameters and errors as for `TeacherSamples.batch`."""
        positions = check_indices(indices, len(self))
        if self.path.stat().st_size < self._size:  # reading a truncated memory map would kill the process
            raise ValueError(f"{self.path} was truncated while it was open; get a fresh copy.")
        condition: Tensor | list[str] | None = None
        if isinstance(self._condition, list):
            condition = [self._condition[index] for index in positions]
        elif self._condition is not None:
            condition = _load(self._condition, positions)
        samples = {"samples": _load(self._samples, positions)}
        if images and self._images is not None:
            samples["images"] = _load(self._images, positions)
        check_finite(samples, self.path)
        return SampleBatch(
            noise=_load(self._noise, positions),
            samples=samples["samples"],
            condition=condition,
            images=samples.get("images"),
            seeds=None,
        )

    def find_seeds(self, candidates: Sequence[int]) -> list[int]:
        """Return the seed of each sample: the candidate with the same noise, bit for bit.

        Raises ValueError if a sample's noise matches no candidate, for example if it was drawn on a GPU.
        """
        known = {_key(stacked_noise([seed], self.sample_shape)): seed for seed in candidates}
        seeds = [known.get(_key(_load(self._noise, [index]))) for index in range(len(self))]
        unknown = seeds.count(None)
        if unknown:
            raise ValueError(
                f"The noise of {unknown} of {len(self)} samples of {self.path} does not come from the seeds "
                f"{format_seeds(candidates)[:40]} and cannot be drawn again; use the file itself, in Python "
                "with ReferenceDataset."
            )
        return [seed for seed in seeds if seed is not None]


def _load(tensor: PickledTensor, indices: Sequence[int]) -> Tensor:
    return torch.cat([tensor.rows(index, index + 1) for index in indices])


def _key(noise: Tensor) -> bytes:
    """Return a hash that identifies one sample's noise."""
    return hashlib.sha256(noise.numpy().tobytes()).digest()


def convert_dataset(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    candidates: Sequence[int] | None = None,
    *,
    images: bool = False,
    shard_size: int | None = None,
    repair: bool = False,
    reporter: Reporter | None = None,
) -> TeacherSamples:
    """Convert a published data set into a folder of samples, sorted by seed and without the noise.

    The noise must be, bit for bit, that of `stacked_noise` for seeds among the candidates.

    Parameters
    ----------
    path : path
        The pickle.
    folder : path
        Output directory. If it exists, the conversion resumes.
    candidates : sequence of int, optional
        Possible seeds. Default: 0 to 49,999, those of the paper.
    images : bool, default False
        Also store decoded images.
    shard_size, repair, reporter
        As for `generate_samples`.

    Raises
    ------
    ValueError
        If a sample's noise matches no candidate, or the folder holds other samples.
    """
    if shard_size is not None:
        whole_number("shard_size", shard_size, 1)
    dataset = ReferenceDataset(path)
    found = dataset.find_seeds(_PUBLISHED_SEEDS if candidates is None else candidates)
    order = sorted(range(len(dataset)), key=found.__getitem__)
    seeds = [found[index] for index in order]
    image_shape = dataset.image_shape if images else None
    numbers = math.prod(dataset.sample_shape) + math.prod(image_shape or (0,))
    settings = {
        "teacher": {
            "name": dataset.path.name,
            "weights_hash": "",
            "condition_kind": dataset.condition_kind,
            "file_sha256": file_hash(dataset.path),
        },
        "solver": None,
        "guidance_scale": None,
        "seeds": format_seeds(seeds),
        "samples": len(seeds),
        "sample_shape": dataset.sample_shape,
        "image_shape": image_shape,
        "shard_size": shard_size or default_shard_size(len(seeds), 1, 4 * numbers),
    }
    made_with = {"torch": str(torch.__version__), "file": dataset.path.name}
    manifest = Manifest(plain(settings), first_noise(seeds, dataset.sample_shape), made_with)
    filling = SampleFolder(Path(folder), manifest)

    def make(rows: range, advance: Advance) -> Content:
        batch = dataset.batch([order[row] for row in rows], images=images)
        tensors = {"samples": batch.samples}
        if batch.images is not None:
            tensors["images"] = batch.images
        if isinstance(batch.condition, Tensor):
            tensors["labels"] = batch.condition
        advance(len(rows))
        return Content(tensors, batch.condition if isinstance(batch.condition, list) else None, None)

    fill(filling, make, repair=repair, reporter=reporter)
    return TeacherSamples(filling)


def import_samples(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    config: Config | None = None,
    *,
    images: bool = False,
    reporter: Reporter | None = None,
) -> TeacherSamples:
    """Convert a published data set as `convert_dataset` does, with the seeds of a config.

    Also raises ValueError if shape or conditions of the samples do not match the config.
    """
    if config is None:
        return convert_dataset(path, folder, reporter=reporter)
    dataset = ReferenceDataset(path)
    found = (dataset.sample_shape, dataset.condition_kind)
    expected = (config.space.shape, config.conditions.kind)
    if found != expected:
        raise ValueError(
            f"{path} holds samples of shape {found[0]} with conditions of type {found[1]}, but the config "
            f"{config.name} describes {expected[0]} and {expected[1]}; give the file of this config."
        )
    seeds = parse_seeds(config.seeds.teacher)
    return convert_dataset(path, folder, seeds, images=images, reporter=reporter)
