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
from gas_ext.samples.generate import Conditions
from gas_ext.samples.manifest import plain, short_hash

_CHUNK = 250  # samples per file, rounded up to whole batches: the most that an interruption costs
FEWEST = 20  # samples that a distance of distributions needs at least
SHOWN = 12  # images in the grids: those of the first seeds


@dataclass(frozen=True)
class Chunk:
    """Consecutive seeds that are sampled and stored together.

    The identity is a hash of the seeds, their conditions and the number of images stored, so equal chunks of
    different comparisons share it.
    """

    rows: range  # positions among all seeds
    identity: str


@dataclass(frozen=True)
class Setup:
    """The settings of `compare` that are the same for every solver."""

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
        """Number of images in the grids."""
        return min(SHOWN, self.full_batch)

    def check(self) -> None:
        """Raise ValueError for settings that cannot be compared."""
        names = [extractor.name for extractor in self.extractors]
        least = FEWEST if names else 2
        if len(self.seeds) < least:
            raise ValueError(f"There are {len(self.seeds)} seeds; pass at least {least}.")
        if common_seeds(self.seeds, self.seeds)[0] != len(self.seeds):
            raise ValueError("A seed occurs twice, which would count its sample twice; pass each seed once.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}, but must be at least 1.")
        if len(set(names)) != len(names):
            raise ValueError(f"Two feature extractors have one name ({', '.join(names)}); pass each once.")
        if self.perceptual:
            self.feature_maps()

    def feature_maps(self) -> Callable[[Tensor], Sequence[Tensor]]:
        """Return the feature maps of the perceptual distance: those of the first extractor that has some."""
        for extractor in self.extractors:
            if extractor.feature_maps is not None:
                return extractor.feature_maps
        names = ", ".join(extractor.name for extractor in self.extractors) or "none"
        raise ValueError(
            f"The perceptual distance needs features with maps, but the features are: {names}; use demo or "
            "efficientnet-lite0."
        )

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
        """Everything that samples, features and times depend on apart from solver and seeds."""
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

    def cell_identity(self, solver: str, teacher: str) -> str:
        """Return the folder name of a solver's chunks, from hashes of the solver and its teacher's solver."""
        return short_hash({**self.described, "solver": solver, "teacher_solver": teacher})

    def _describe_teacher(self) -> dict[str, Any]:
        """Identify a network by the hash of its weights, or else of an output."""
        denoiser = self.denoiser
        described = {"name": denoiser.name, "family": denoiser.family, "weights_hash": denoiser.weights_hash}
        return described if denoiser.weights_hash else {**described, "output_hash": self._output_hash()}

    def _output_hash(self) -> str:
        """Hash the output for one noise, with the first condition, as no other is sure to be valid."""
        denoiser = self.denoiser
        noise = stacked_noise([0], denoiser.sample_shape, device=denoiser.device)
        time = torch.tensor(0.5, dtype=torch.float64, device=denoiser.device)
        condition = self.condition(range(1))
        if isinstance(condition, Tensor):
            condition = condition.to(denoiser.device)
        with evaluating(denoiser, denoiser.device):
            output = denoiser.predict(noise, time, denoiser.encode_condition(condition))
        return checksum({}, {"output": output.cpu()})[:16]
