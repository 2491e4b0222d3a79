"""Generating teacher samples: a denoiser and a many-step solver, run over a list of seeds."""

from __future__ import annotations

import math
import operator
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from gas_ext._utils.checks import path_of, whole_number
from gas_ext._utils.modes import deterministic, evaluating
from gas_ext._utils.noise import seed_labels, stacked_noise
from gas_ext._utils.progress import Advance, Reporter
from gas_ext._utils.sealed_files import checksum
from gas_ext._utils.seeds import MOST_SEEDS, SeedList, format_seeds, parse_seeds
from gas_ext.denoisers import Denoiser
from gas_ext.sampler import GASSampler
from gas_ext.samples.filling import Content, SampleFolder, fill
from gas_ext.samples.manifest import Manifest, first_noise, plain, read_manifest, short_hash
from gas_ext.samples.reading import TeacherSamples
from gas_ext.solvers.coefficients import Solver
from gas_ext.solvers.generalized import GeneralizedSolver

# One entry per sample: labels (n,) or other tensors (n, ...), prompts, or nothing.
Conditions: TypeAlias = Tensor | list[str] | None

_SHARD_SAMPLES = 1024
_SHARD_BYTES = 2**28
_FEWEST_SHARDS = 16  # if there are as many batches
_SHOWN_SEEDS = 5  # in an error message


def generate_samples(
    denoiser: Denoiser,
    solver: Solver,
    seeds: Sequence[int],
    folder: str | os.PathLike[str],
    *,
    labels: Sequence[int] | Tensor | None = None,
    prompts: Sequence[str] | None = None,
    conditions: Tensor | None = None,
    batch_size: int = 64,
    shard_size: int | None = None,
    images: bool = False,
    guidance_scale: float | None = None,
    autocast: torch.dtype | None = None,
    threads: int = 1,
    repair: bool = False,
    command: str = "",
    reporter: Reporter | None = None,
    rank: int | None = None,
    world_size: int | None = None,
) -> TeacherSamples:
    """Generate the samples of a list of seeds in a folder; an interrupted run resumes.

    A folder that holds samples of the first of these seeds, generated with the same settings, grows: its
    samples stay unchanged and can be read meanwhile.

    Under ``torchrun`` (or with `rank` and `world_size`), several processes fill one folder without
    communicating, on one machine or on several that share it. At the same batch size, the files are
    identical for any number of processes; other batch sizes agree up to the network's rounding.

    Parameters
    ----------
    denoiser : Denoiser
        The teacher, on the device to compute on. Runs in evaluation mode.
    solver : GeneralizedSolver or MultistepSolver
        The teacher's solver, on the same device.
    seeds : sequence of int
        One per sample. Each seed's noise has its own generator (`stacked_noise`) and is not stored.
    folder : path
        Output directory; created if missing.
    labels : sequence of int, optional
        For class-conditional teachers: the i-th seed gets ``labels[i % len(labels)]``. Default: the seed
        modulo the number of classes.
    prompts : sequence of str, optional
        Required for teachers with prompts: the i-th seed gets ``prompts[i % len(prompts)]``.
    conditions : Tensor, optional
        For teachers with tensor conditions: (len(seeds), ...), one row per seed.
    batch_size : int, default 64
        Samples per network call.
    shard_size : int, optional
        Samples per file, which is also the most that a killed process loses. Default: that of the existing
        folder, otherwise `default_shard_size`.
    images : bool, default False
        Also store the samples as decoded by `denoiser.decode`.
    guidance_scale : float, optional
        As for `GASSampler`.
    autocast : torch.dtype, optional
        Run the network under `torch.autocast` in this precision.
    threads : int, default 1
        CPU threads if the device is a CPU; another number changes the last bits. To use more cores, run
        more processes.
    repair : bool, default False
        Compare existing shards with their SHA-256, and regenerate damaged ones.
    command : str, optional
        The command line, recorded in the manifest.
    reporter : Reporter, optional
        Receives the progress.
    rank, world_size : int, optional
        This process and their number. Default: RANK and WORLD_SIZE of the environment.

    Returns
    -------
    TeacherSamples
        The folder; not `complete` while other processes are still working. It may have grown further.

    Raises
    ------
    TypeError
        If `denoiser` is not a `Denoiser`, a seed is not an integer, or a prompt is not a string.
    ValueError
        If the conditions do not match the teacher, the folder holds samples made with other settings or is
        not writable, or a sample is not finite.
    OSError
        If the disk is full.
    """
    if not isinstance(denoiser, Denoiser):
        raise TypeError(
            f"The denoiser is a {type(denoiser).__name__}, but must be a Denoiser; wrap a function with "
            "Denoiser.from_callable."
        )
    seeds, folder = _check_seeds(seeds), path_of("folder", folder)
    for name, value in (("batch_size", batch_size), ("shard_size", shard_size), ("threads", threads)):
        if value is not None:
            whole_number(name, value, 1)
    spread = spread_conditions(denoiser, seeds, labels, prompts, conditions)
    sampler = GASSampler(solver, denoiser, guidance_scale=guidance_scale)
    teacher = _Teacher(sampler, denoiser, seeds, spread, batch_size, images, autocast, threads)
    image_shape = teacher.image_shape()
    existing = read_manifest(folder)
    if shard_size is None:
        numbers = denoiser.sample_size + math.prod(image_shape or (0,))
        usual = default_shard_size(len(seeds), batch_size, 4 * numbers)
        shard_size = usual if existing is None else existing.settings["shard_size"]
    made_with = _made_with(denoiser.device, command)

    def planned(count: int) -> Manifest:
        settings = teacher.settings(count, {"image_shape": image_shape, "shard_size": shard_size})
        return Manifest(plain(settings), first_noise(seeds, denoiser.sample_shape), made_with)

    def filled(manifest: Manifest) -> SampleFolder:
        filling = SampleFolder(folder, manifest)
        fill(filling, teacher.shard, repair=repair, reporter=reporter, rank=rank, world_size=world_size)
        return filling

    filling = filled(planned(_begun(existing, seeds) or len(seeds)))
    if filling.manifest.complete and len(filling.seeds) < len(seeds):
        filling = filled(filling.manifest.grown(planned(len(seeds))))
    return TeacherSamples(filling)


def _begun(existing: Manifest | None, seeds: SeedList) -> int:
    """Return how many samples a folder holds or plans if they are the first of these seeds, else 0."""
    begun = [] if existing is None else parse_seeds(existing.settings["seeds"])
    return len(begun) if begun == seeds[: len(begun)] else 0


@dataclass(frozen=True)
class _Teacher:
    """Everything that the samples depend on; turns seeds into samples, always in the same way."""

    sampler: GASSampler
    denoiser: Denoiser
    seeds: SeedList
    conditions: Conditions
    batch_size: int
    images: bool
    autocast: torch.dtype | None
    threads: int

    def settings(self, count: int, layout: dict[str, Any]) -> dict[str, Any]:
        """Return the settings of the first samples for the manifest."""
        conditions = self.conditions
        return {
            "teacher": _describe_denoiser(self.denoiser),
            "solver": _describe_solver(self.sampler),
            "guidance_scale": self.sampler.guidance_scale,
            "seeds": format_seeds(self.seeds[:count]),
            "samples": count,
            "conditions": None if conditions is None else _describe_conditions(conditions[:count]),
            "sample_shape": self.denoiser.sample_shape,
            "batch_size": self.batch_size,
            **layout,
            "autocast": None if self.autocast is None else str(self.autocast).removeprefix("torch."),
            "threads": self.threads,
        }

    @contextmanager
    def _reproducible(self) -> Iterator[None]:
        """Compute without gradients, and with the same bits in every process."""
        device = self.denoiser.device
        threads = self.threads if device.type == "cpu" else None
        with deterministic(threads), evaluating(self.denoiser, device, self.autocast):
            yield

    def image_shape(self) -> tuple[int, ...] | None:
        """Return the shape of one decoded image, or None if images are not stored."""
        if not self.images:
            return None
        zeros = torch.zeros(1, *self.denoiser.sample_shape, device=self.denoiser.device)
        with self._reproducible():
            return tuple(self._decode(zeros).shape[1:])

    def _decode(self, samples: Tensor) -> Tensor:
        images = self.denoiser.decode(samples)
        if not isinstance(images, Tensor) or images.shape[:1] != samples.shape[:1]:
            got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(
                f"decode of {self.denoiser.name} returned {got} for {len(samples)} samples; it must return a "
                "tensor with one entry per sample."
            )
        return images

    def shard(self, rows: range, advance: Advance) -> Content:
        """Generate the samples of one shard, batch by batch from its first row."""
        parts: dict[str, list[Tensor]] = defaultdict(list)
        self.sampler.evaluations = 0
        starts = range(rows.start, rows.stop, self.batch_size)
        with self._reproducible():
            for start in starts:
                part = slice(start, min(start + self.batch_size, rows.stop))
                for name, values in self._batch(part).items():
                    parts[name].append(values.cpu())
                advance(part.stop - part.start)
        # Contiguous, since a network may work with channels last.
        tensors = {name: torch.cat(values).contiguous() for name, values in parts.items()}
        conditions = None if self.conditions is None else self.conditions[rows.start : rows.stop]
        if isinstance(conditions, Tensor):
            name = "labels" if self.denoiser.condition_kind == "label" else "conditions"
            tensors[name] = conditions.contiguous()
        prompts = conditions if isinstance(conditions, list) else None
        return Content(tensors, prompts, self.sampler.evaluations // len(starts))

    def _batch(self, part: slice) -> dict[str, Tensor]:
        seeds = self.seeds[part]
        noise = stacked_noise(seeds, self.denoiser.sample_shape, device=self.denoiser.device)
        condition = None if self.conditions is None else self.conditions[part]
        if isinstance(condition, Tensor):
            condition = condition.to(noise.device)
        tensors = {"samples": self.sampler(noise, condition)}
        if self.images:
            tensors["images"] = self._decode(tensors["samples"])
        _check_finite(tensors, seeds)
        return tensors


def _check_finite(tensors: dict[str, Tensor], seeds: Sequence[int]) -> None:
    finite = [torch.isfinite(values).reshape(len(seeds), -1).all(1) for values in tensors.values()]
    good = torch.stack(finite).all(0).tolist()
    if not all(good):
        bad = [seed for seed, is_good in zip(seeds, good, strict=True) if not is_good]
        shown = ", ".join(map(str, bad[:_SHOWN_SEEDS])) + (", ..." if len(bad) > _SHOWN_SEEDS else "")
        raise ValueError(
            f"The samples of seeds {shown} are not finite and were not written; check the network, and try "
            "it in float32."
        )


def _check_seeds(seeds: Sequence[int]) -> SeedList:
    try:
        whole = SeedList.of(seeds if isinstance(seeds, SeedList | range) else map(operator.index, seeds))
    except TypeError as error:
        raise TypeError(f"The seeds must be a sequence of integers, but {error}.") from error
    except OverflowError:
        raise ValueError("A seed exceeds 64 bits; noise uses seeds modulo 2**32 anyway.") from None
    if not whole:
        raise ValueError("There are no seeds; give at least one.")
    if len(whole) > MOST_SEEDS:
        raise ValueError(f"There are {len(whole)} seeds, more than {MOST_SEEDS}; give fewer.")
    return whole


def default_shard_size(samples: int, batch_size: int, bytes_per_sample: int) -> int:
    """Return whole batches of up to 1024 samples and 256 MiB, and at most a sixteenth of all samples.

    Examples
    --------
    >>> default_shard_size(50_000, 64, 12_288), default_shard_size(1400, 64, 12_288)
    (1024, 64)
    """
    most = min(_SHARD_SAMPLES, _SHARD_BYTES // bytes_per_sample, samples // _FEWEST_SHARDS)
    return max(1, most // batch_size) * batch_size


def spread_conditions(
    denoiser: Denoiser,
    seeds: Sequence[int],
    labels: Sequence[int] | Tensor | None = None,
    prompts: Sequence[str] | None = None,
    conditions: Tensor | None = None,
) -> Conditions:
    """Return one condition per seed; parameters and errors as for `generate_samples`."""
    kind, given = denoiser.condition_kind, {"label": labels, "prompt": prompts, "tensor": conditions}
    for name, values in given.items():
        if values is not None and name != kind:
            takes = "no condition" if kind == "none" else f"conditions of type {kind!r}"
            raise ValueError(f"{denoiser.name} takes {takes}, but got {name}s; omit them.")
        if values is not None and len(values) == 0:
            raise ValueError(f"There are no {name}s; give at least one, or omit them.")
    if kind == "label":
        assert denoiser.num_classes is not None
        if labels is None:
            return seed_labels(seeds, denoiser.num_classes)
        whole = _existing_labels(denoiser, labels)
        return whole[torch.arange(len(seeds)) % len(whole)]
    if kind == "prompt":
        if prompts is None:
            raise ValueError(f"{denoiser.name} needs prompts; give a file with one per line (--prompts).")
        if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
            raise TypeError("The prompts must be a list of strings; put a single string into a list.")
        return [prompts[i % len(prompts)] for i in range(len(seeds))]
    if conditions is not None and len(conditions) != len(seeds):
        raise ValueError(
            f"There are {len(conditions)} rows of conditions for {len(seeds)} seeds; expected one per seed."
        )
    return None if conditions is None else conditions.detach().cpu()


def _existing_labels(denoiser: Denoiser, labels: Sequence[int] | Tensor) -> Tensor:
    """Return labels as int64 (n,) on the CPU; ValueError if one does not exist."""
    if isinstance(labels, SeedList):  # faster than through a list of Python integers
        labels = torch.from_numpy(np.fromiter(labels, np.int64, len(labels)))
    encoded: Tensor = denoiser.encode_condition(torch.as_tensor(labels).cpu())
    encoded = encoded.cpu()  # on a GPU its values have not been checked
    assert denoiser.num_classes is not None
    if not bool(((encoded >= 0) & (encoded <= denoiser.num_classes)).all()):
        raise ValueError(
            f"Labels of {denoiser.name} are 0 to {denoiser.num_classes - 1} ({denoiser.num_classes} for "
            f"none), but got {encoded.min().item()} to {encoded.max().item()}; give existing labels."
        )
    return encoded


def _describe_conditions(conditions: Tensor | list[str]) -> dict[str, Any]:
    if isinstance(conditions, Tensor):
        return {"shape": conditions.shape[1:], "sha256": checksum({}, {"conditions": conditions})}
    return {"first": conditions[0], "sha256": short_hash(conditions)}


def _describe_denoiser(denoiser: Denoiser) -> dict[str, Any]:
    """Return the identity of a teacher as plain values."""
    schedule = {
        name: short_hash(value) if isinstance(value, list) else value
        for name, value in denoiser.schedule.to_dict().items()
    }
    names = ("name", "weights_hash", "prediction_type", "condition_kind", "num_classes")
    return {**{name: getattr(denoiser, name) for name in names}, "schedule": schedule}


def _describe_solver(sampler: GASSampler) -> dict[str, Any]:
    """Return the identity of a sampler's solver as plain values."""
    solver = sampler.solver
    described: dict[str, Any] = {"kind": type(solver).__name__, "steps": solver.steps, "t_eps": solver.t_eps}
    if isinstance(solver, GeneralizedSolver):
        names = ("time_offsets", "data_corrections", "state_corrections")
        learned = {name: getattr(solver, name).detach().cpu() for name in names}
        return {
            **described,
            "order": solver.order,
            "theory_order": solver.theory_order if solver.theory_guidance else None,
            "compat": solver.compat,
            "timesteps": solver.timesteps().tolist(),
            "corrections": checksum({}, learned) if any(value.any() for value in learned.values()) else None,
        }
    describe = getattr(solver, "describe", None)
    if describe is not None:
        return {**described, **describe()}
    return {**described, "timesteps": sampler.coefficients().timesteps.tolist()}


def _made_with(device: torch.device, command: str) -> dict[str, Any]:
    import gas_ext

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    versions = {"gas_ext": gas_ext.__version__, "torch": str(torch.__version__)}
    return {**versions, "device": name, "command": command}
