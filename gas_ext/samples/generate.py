"""Making teacher samples: a denoiser and a many-step solver, run over a list of seeds."""

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
_FEWEST_SHARDS = 16  # where there are as many batches
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
    """Make the samples of a list of seeds and keep them in a folder; resumes where an earlier run stopped.

    A folder that holds the first of these seeds, made with the same settings, grows: what is there stays as
    it is, and can be read meanwhile.

    Under ``torchrun`` (or with `rank` and `world_size`) several processes fill one folder, on one machine or
    on several that share it, without talking to each other. At the same batch size the files are the same,
    byte for byte, whatever the number of processes; other batch sizes agree up to the network's rounding.

    Parameters
    ----------
    denoiser : Denoiser
        The teacher, on the device to compute on. It is put in evaluation mode meanwhile.
    solver : GeneralizedSolver or MultistepSolver
        The teacher's solver, on the same device.
    seeds : sequence of int
        One per sample. The noise of each is drawn by a generator of its own (`stacked_noise`), not stored.
    folder : path
        Made if it does not exist.
    labels : sequence of int, optional
        For teachers with labels: the i-th seed gets ``labels[i % len(labels)]``. If not given, the seed
        modulo the number of classes.
    prompts : sequence of str, optional
        For teachers with prompts, which need them: the i-th seed gets ``prompts[i % len(prompts)]``.
    conditions : Tensor, optional
        For teachers with conditions of another kind: (len(seeds), ...), one row per seed.
    batch_size : int
        Samples per network call.
    shard_size : int, optional
        Samples per file, and so what a killed process loses at most. If not given, as in the folder, or
        `default_shard_size`.
    images : bool
        Also keep what `denoiser.decode` makes of the samples.
    guidance_scale : float, optional
        As for `GASSampler`.
    autocast : torch.dtype, optional
        Run the network under `torch.autocast` in this precision.
    threads : int
        Threads of the CPU, where that computes: with another number the last bits differ. Rather run more
        processes.
    repair : bool
        Also compare the shards that are there with their SHA-256, and make the damaged ones again.
    command : str
        What was typed, for the manifest.
    reporter : Reporter, optional
        Told of the progress.
    rank, world_size : int, optional
        This process and their number; RANK and WORLD_SIZE of the environment if not given.

    Returns
    -------
    TeacherSamples
        The folder; not `complete` while other processes are still at work. It may have grown further.

    Raises
    ------
    TypeError
        If the denoiser is none, a seed is no integer, or a prompt no text.
    ValueError
        If the conditions do not fit the teacher, the folder holds samples made with other settings or cannot
        be written, or a sample is not finite.
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
    teacher = _Teacher(sampler, denoiser, images, autocast, threads)
    image_shape = teacher.image_shape()
    there = read_manifest(folder)
    if shard_size is None:
        numbers = denoiser.sample_size + math.prod(image_shape or (0,))
        usual = default_shard_size(len(seeds), batch_size, 4 * numbers)
        shard_size = usual if there is None else there.settings["shard_size"]

    def wanted(count: int) -> Manifest:
        settings = {
            "teacher": _describe_denoiser(denoiser),
            "solver": _describe_solver(sampler),
            "guidance_scale": sampler.guidance_scale,
            "seeds": format_seeds(seeds[:count]),
            "samples": count,
            "conditions": None if spread is None else _describe_conditions(spread[:count]),
            "sample_shape": denoiser.sample_shape,
            "image_shape": image_shape,
            "batch_size": batch_size,
            "shard_size": shard_size,
            "autocast": None if autocast is None else str(autocast).removeprefix("torch."),
            "threads": threads,
        }
        made_with = _made_with(denoiser.device, command)
        return Manifest(plain(settings), first_noise(seeds, denoiser.sample_shape), made_with)

    def make(rows: range, advance: Advance) -> Content:
        return teacher.shard(seeds, spread, rows, batch_size, advance)

    def filled(manifest: Manifest) -> SampleFolder:
        filling = SampleFolder(folder, manifest)
        fill(filling, make, repair=repair, reporter=reporter, rank=rank, world_size=world_size)
        return filling

    filling = filled(wanted(_begun(there, seeds) or len(seeds)))
    if filling.manifest.complete and len(filling.seeds) < len(seeds):
        filling = filled(filling.manifest.grown(wanted(len(seeds))))
    return TeacherSamples(filling)


def _begun(there: Manifest | None, seeds: SeedList) -> int:
    """Return how many samples a folder holds, or is to hold, if they are the first of these seeds; else 0."""
    if there is None:
        return 0
    begun = parse_seeds(there.settings["seeds"])
    return len(begun) if begun == seeds[: len(begun)] else 0


@dataclass(frozen=True)
class _Teacher:
    """Turns seeds into samples, always in the same way."""

    sampler: GASSampler
    denoiser: Denoiser
    images: bool
    autocast: torch.dtype | None
    threads: int

    @contextmanager
    def _reproducible(self) -> Iterator[None]:
        """Compute without gradients and in a way that gives the same bits in every process."""
        device = self.denoiser.device
        threads = self.threads if device.type == "cpu" else None
        with deterministic(threads), evaluating(self.denoiser, device, self.autocast):
            yield

    def image_shape(self) -> tuple[int, ...] | None:
        """Return the shape of one decoded image, or None if none are asked for."""
        if not self.images:
            return None
        nothing = torch.zeros(1, *self.denoiser.sample_shape, device=self.denoiser.device)
        with self._reproducible():
            return tuple(self._decode(nothing).shape[1:])

    def _decode(self, samples: Tensor) -> Tensor:
        images = self.denoiser.decode(samples)
        if not isinstance(images, Tensor) or images.shape[:1] != samples.shape[:1]:
            got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(
                f"decode of {self.denoiser.name} returned {got} for {len(samples)} samples; it must return a "
                "tensor with one entry per sample."
            )
        return images

    def shard(
        self, seeds: SeedList, conditions: Conditions, rows: range, batch_size: int, advance: Advance
    ) -> Content:
        """Make the samples of one shard, batch by batch from its first row."""
        parts: dict[str, list[Tensor]] = defaultdict(list)
        self.sampler.evaluations = 0
        starts = range(rows.start, rows.stop, batch_size)
        with self._reproducible():
            for start in starts:
                part = slice(start, min(start + batch_size, rows.stop))
                noise = stacked_noise(seeds[part], self.denoiser.sample_shape, device=self.denoiser.device)
                condition = None if conditions is None else conditions[part]
                if isinstance(condition, Tensor):
                    condition = condition.to(noise.device)
                samples = self.sampler(noise, condition)
                made = {"samples": samples}
                if self.images:
                    made["images"] = self._decode(samples)
                _check_finite(made, seeds[part])
                for name, values in made.items():
                    parts[name].append(values.cpu())
                advance(part.stop - part.start)
        # Contiguous, as a network may work with channels last.
        tensors = {name: torch.cat(values).contiguous() for name, values in parts.items()}
        mine = None if conditions is None else conditions[rows.start : rows.stop]
        if isinstance(mine, Tensor):
            tensors["labels" if self.denoiser.condition_kind == "label" else "conditions"] = mine.contiguous()
        nfe = self.sampler.evaluations // len(starts)
        return Content(tensors, mine if isinstance(mine, list) else None, nfe)


def _check_finite(made: dict[str, Tensor], seeds: Sequence[int]) -> None:
    finite = [torch.isfinite(values).reshape(len(seeds), -1).all(1) for values in made.values()]
    good = torch.stack(finite).all(0).tolist()
    if not all(good):
        bad = [seed for seed, is_good in zip(seeds, good, strict=True) if not is_good]
        shown = ", ".join(map(str, bad[:_SHOWN_SEEDS])) + (", ..." if len(bad) > _SHOWN_SEEDS else "")
        raise ValueError(
            f"The samples of seeds {shown} are not finite and were not written: check the network, and try "
            "it in float32."
        )


def _check_seeds(seeds: Sequence[int]) -> SeedList:
    try:
        whole = SeedList.of(seeds if isinstance(seeds, SeedList | range) else map(operator.index, seeds))
    except TypeError as error:
        raise TypeError(f"The seeds must be a sequence of integers, but {error}.") from error
    except OverflowError:
        raise ValueError("A seed does not fit into 64 bits; noise takes seeds modulo 2**32 anyway.") from None
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
    wanted = min(_SHARD_SAMPLES, _SHARD_BYTES // bytes_per_sample, samples // _FEWEST_SHARDS)
    return max(1, wanted // batch_size) * batch_size


def spread_conditions(
    denoiser: Denoiser,
    seeds: Sequence[int],
    labels: Sequence[int] | Tensor | None = None,
    prompts: Sequence[str] | None = None,
    conditions: Tensor | None = None,
) -> Conditions:
    """Return one condition per seed; see `generate_samples`.

    Raises
    ------
    ValueError
        If there are conditions of a kind that the teacher does not take, prompts or rows are missing, or a
        label does not exist.
    TypeError
        If a prompt is no text.
    """
    kind, given = denoiser.condition_kind, {"label": labels, "prompt": prompts, "tensor": conditions}
    for other, values in given.items():
        if values is not None and other != kind:
            takes = "no condition" if kind == "none" else f"conditions of kind {kind!r}"
            raise ValueError(f"{denoiser.name} takes {takes}, but got {other}s; leave them out.")
        if values is not None and len(values) == 0:
            raise ValueError(f"There are no {other}s; give at least one, or leave them out.")
    if kind == "label":
        assert denoiser.num_classes is not None
        if labels is None:
            return seed_labels(seeds, denoiser.num_classes)
        whole = _as_tensor(labels)
        return _existing_labels(denoiser, whole)[torch.arange(len(seeds)) % len(whole)]
    if kind == "prompt":
        if prompts is None:
            raise ValueError(f"{denoiser.name} needs prompts; give a file with one per line (--prompts).")
        if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
            raise TypeError("The prompts must be a list of texts; one text alone goes into brackets.")
        return [prompts[i % len(prompts)] for i in range(len(seeds))]
    if conditions is not None and len(conditions) != len(seeds):
        raise ValueError(
            f"There are {len(conditions)} rows of conditions for {len(seeds)} seeds; expected one per seed."
        )
    return None if conditions is None else conditions.detach().cpu()


def _as_tensor(labels: Sequence[int] | Tensor) -> Tensor:
    if isinstance(labels, SeedList):  # without a list of Python's integers between
        return torch.from_numpy(np.fromiter(labels, np.int64, len(labels)))
    return torch.as_tensor(labels).cpu()


def _existing_labels(denoiser: Denoiser, labels: Tensor) -> Tensor:
    """Return labels as int64 (n,) on the CPU, or raise ValueError if one does not exist."""
    encoded: Tensor = denoiser.encode_condition(labels)
    encoded = encoded.cpu()  # on a GPU its values have not been looked at
    assert denoiser.num_classes is not None
    if not bool(((encoded >= 0) & (encoded <= denoiser.num_classes)).all()):
        raise ValueError(
            f"Labels of {denoiser.name} are 0 to {denoiser.num_classes - 1} ({denoiser.num_classes} for "
            f"none), but got {encoded.min().item()} to {encoded.max().item()}."
        )
    return encoded


def _describe_conditions(conditions: Tensor | list[str]) -> dict[str, Any]:
    if isinstance(conditions, Tensor):
        return {"shape": conditions.shape[1:], "sha256": checksum({}, {"conditions": conditions})}
    return {"first": conditions[0], "sha256": short_hash(conditions)}


def _describe_denoiser(denoiser: Denoiser) -> dict[str, Any]:
    """Return the identity of a teacher, plain values."""
    schedule = {
        name: short_hash(value) if isinstance(value, list) else value
        for name, value in denoiser.schedule.to_dict().items()
    }
    return {
        "name": denoiser.name,
        "weights_hash": denoiser.weights_hash,
        "prediction_type": denoiser.prediction_type,
        "condition_kind": denoiser.condition_kind,
        "num_classes": denoiser.num_classes,
        "schedule": schedule,
    }


def _describe_solver(sampler: GASSampler) -> dict[str, Any]:
    """Return the identity of a sampler's solver, plain values."""
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
    return {
        "gas_ext": gas_ext.__version__,
        "torch": str(torch.__version__),
        "device": name,
        "command": command,
    }
