"""What all solvers of a comparison share: network, seeds, conditions, precision, features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gas_ext._utils.modes import evaluating
from gas_ext._utils.noise import stacked_noise
from gas_ext._utils.sealed_files import checksum
from gas_ext._utils.seeds import common_seeds
from gas_ext.denoisers import Denoiser
from gas_ext.evaluation.features import FeatureExtractor
from gas_ext.evaluation.metrics import Reference
from gas_ext.evaluation.metrics.measure import agreed_extractor, comparable
from gas_ext.samples.generate import Conditions
from gas_ext.samples.manifest import plain, short_hash

_CHUNK = 250  # samples per file, rounded up to whole batches: what an interruption costs at most
FEWEST = 20  # samples that a distance of distributions needs at least
SHOWN = 12  # images of the grids: those of the first seeds


@dataclass(frozen=True)
class Chunk:
    """Consecutive seeds that are sampled and stored together.

    Parameters
    ----------
    rows : range
        Their positions among all seeds.
    identity : str
        Hash of the seeds, their conditions and the number of images stored: the same wherever they occur.
    """

    rows: range
    identity: str


@dataclass(frozen=True)
class Setup:
    """What is the same for every solver; the parameters are those of `compare`."""

    denoiser: Denoiser
    seeds: Sequence[int]
    conditions: Conditions
    guidance_scale: float | None = None
    autocast: torch.dtype | None = None
    batch_size: int = 50
    extractors: tuple[FeatureExtractor, ...] = ()
    perceptual: bool = False

    @property
    def full_batch(self) -> int:
        """Samples of a full batch."""
        return min(self.batch_size, len(self.seeds))

    @property
    def shown(self) -> int:
        """Number of images of the grids."""
        return min(SHOWN, self.full_batch)

    def feature_maps(self) -> Callable[[Tensor], Sequence[Tensor]]:
        """Return what a perceptual distance is measured in: the maps of the first extractor that has some."""
        found = [e.feature_maps for e in self.extractors if e.feature_maps is not None]
        if not found:
            names = ", ".join(extractor.name for extractor in self.extractors) or "none"
            raise ValueError(
                f"A perceptual distance needs features with maps, but there are {names}; take demo or "
                "efficientnet-lite0."
            )
        return found[0]

    def chunks(self) -> list[Chunk]:
        """Cut the seeds into chunks of whole batches."""
        size = -(-_CHUNK // self.batch_size) * self.batch_size
        starts = range(0, len(self.seeds), size)
        return [self._chunk(range(start, min(start + size, len(self.seeds)))) for start in starts]

    def _chunk(self, rows: range) -> Chunk:
        conditions = self.condition(rows)
        described = {
            "seeds": list(self.seeds[rows.start : rows.stop]),
            "conditions": conditions if isinstance(conditions, list) else None,
            "shown": self.shown if rows.start == 0 else 0,
        }
        tensors = {"conditions": conditions} if isinstance(conditions, Tensor) else {}
        return Chunk(rows, checksum(described, tensors)[:16])

    def condition(self, rows: range) -> Conditions:
        """Return the conditions of some positions, on the CPU."""
        return None if self.conditions is None else self.conditions[rows.start : rows.stop]

    @cached_property
    def described(self) -> dict[str, Any]:
        """Return what a solver's samples and features depend on apart from the solver and the seeds.

        Batch size and device are among it: the time per image depends on them.
        """
        described = {
            "teacher": self._describe_teacher(),
            "device": self.denoiser.device.type,
            "guidance_scale": self.guidance_scale,
            "autocast": None if self.autocast is None else str(self.autocast).removeprefix("torch."),
            "dtype": "float32",
            "batch_size": self.batch_size,
            "features": [extractor.describe() for extractor in self.extractors],
            "perceptual": self.perceptual,
        }
        plain_values: dict[str, Any] = plain(described)
        return plain_values

    def _describe_teacher(self) -> dict[str, Any]:
        """Return what identifies a network: the hash of its weights, or else of an output."""
        denoiser = self.denoiser
        described = {"name": denoiser.name, "family": denoiser.family, "weights_hash": denoiser.weights_hash}
        return described if denoiser.weights_hash else {**described, "output_hash": self._output_hash()}

    def _output_hash(self) -> str:
        """Hash the output for one noise, with the first condition: there need be no other that fits."""
        denoiser = self.denoiser
        noise = stacked_noise([0], denoiser.sample_shape, device=denoiser.device)
        time = torch.tensor(0.5, dtype=torch.float64, device=denoiser.device)
        condition = self.condition(range(1))
        if isinstance(condition, Tensor):
            condition = condition.to(denoiser.device)
        with evaluating(denoiser, denoiser.device):
            output = denoiser.predict(noise, time, denoiser.encode_condition(condition))
        return checksum({}, {"output": output.cpu()})[:16]


def cell_identity(setup: Setup, solver: str, teacher: str) -> str:
    """Return the name of the folder where a solver's chunks are stored.

    Parameters
    ----------
    setup : Setup
        What all solvers share.
    solver, teacher : str
        Hashes of the solver and of the teacher's, to whose samples the distances are; the latter is empty
        for the teacher itself.

    Examples
    --------
    >>> from gas_ext.teachers.demo import load_demo_teacher
    >>> setup = Setup(load_demo_teacher(), [1, 2], torch.tensor([0, 1]))
    >>> len(cell_identity(setup, "a", "b")), cell_identity(setup, "a", "b") == cell_identity(setup, "a", "c")
    (16, False)
    """
    return short_hash({**setup.described, "solver": solver, "teacher_solver": teacher})


def check_setup(setup: Setup) -> None:
    """Raise ValueError for what cannot be compared."""
    seeds, names = setup.seeds, [extractor.name for extractor in setup.extractors]
    least = FEWEST if names else 2
    if len(seeds) < least:
        raise ValueError(f"There are {len(seeds)} seeds; give at least {least}.")
    if common_seeds(seeds, seeds)[0] != len(seeds):
        raise ValueError("A seed occurs twice, which would count its sample twice; give each once.")
    if setup.batch_size < 1:
        raise ValueError(f"batch_size is {setup.batch_size}; expected at least 1.")
    if len(set(names)) != len(names):
        raise ValueError(f"Two feature extractors have one name ({', '.join(names)}); give each once.")
    if setup.perceptual:
        setup.feature_maps()


def extractor_of(reference: Reference, extractors: Sequence[FeatureExtractor]) -> FeatureExtractor:
    """Return the extractor that a reference was made with; if it does not record one, the first that fits.

    Raises
    ------
    ValueError
        If there is none.
    """
    size = len(reference.statistics.mean)
    fitting = [extractor for extractor in extractors if extractor.size == size]
    made_with = None if reference.extractor is None else comparable(reference.extractor)
    recorded = [e for e in fitting if made_with in (None, comparable(e.describe()))]
    if recorded:
        return recorded[0]
    if fitting:
        agreed_extractor(fitting[0], reference)  # says what differs
    names = ", ".join(f"{extractor.name} ({extractor.size})" for extractor in extractors) or "no features"
    raise ValueError(
        f"The reference {reference.name!r} has {size} features, which does not fit {names}; name the "
        "features that it was made with."
    )
