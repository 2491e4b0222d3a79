"""From the chunks of a solver on disk to its numbers, with their spread over the seeds."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from gas_ext._utils.files import write_file
from gas_ext.evaluation.chunks import CellFolder, features_name
from gas_ext.evaluation.features import FeatureExtractor
from gas_ext.evaluation.measures import measure_key
from gas_ext.evaluation.metrics import METRICS, Estimate, Reference, mean_estimate, measure
from gas_ext.evaluation.metrics.arrays import all_finite
from gas_ext.evaluation.setup import Setup, extractor_of
from gas_ext.samples.manifest import short_hash

FORMAT_VERSION = 1
GROUPS = 20
NEIGHBORS = 5
_PER_SAMPLE = ("l1", "l2", "psnr", "perceptual")


@dataclass(frozen=True)
class Numbers:
    """What is known of one solver.

    Parameters
    ----------
    nfe : int
        Network evaluations per sample, counted while sampling.
    ms_per_image : float or None
        Wall-clock milliseconds per sample: the median over all full batches.
    timing : dict
        How many batches that is of, of what size, on which devices, with how many threads.
    estimates : dict
        By keys of measures; what was not measured, or is not finite, is absent.
    provenance : dict
        By "teacher" and "data", and the same with "@NAME" for further features: with what distances of
        distributions were measured.
    """

    nfe: int
    ms_per_image: float | None
    timing: dict[str, Any]
    estimates: dict[str, Estimate]
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "nfe": self.nfe,
            "ms_per_image": self.ms_per_image,
            "timing": self.timing,
            "estimates": {key: estimate.to_dict() for key, estimate in self.estimates.items()},
            "provenance": self.provenance,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Numbers:
        """Read what `to_dict` returned."""
        estimates = {
            key: Estimate(entry["value"], tuple(entry["replicates"]))
            for key, entry in values["estimates"].items()
        }
        return cls(**{**values, "estimates": estimates})


class Judge:
    """Turns chunks into numbers, which are stored with the chunks.

    Parameters
    ----------
    setup : Setup
        What all solvers share.
    data : Reference or None
        Real data.
    groups : int
        Groups of consecutive seeds for the jackknife, at least 2, or 0 for none; of at least
        2 seeds each.

    Raises
    ------
    ValueError
        If no extractor fits the reference, or there is one group.
    """

    def __init__(self, setup: Setup, data: Reference | None, groups: int = GROUPS) -> None:
        if groups == 1 or groups < 0:
            raise ValueError(f"groups is {groups}; expected at least 2, or 0 for no confidence intervals.")
        self.setup, self.data = setup, data
        self.data_extractor = None if data is None else extractor_of(data, setup.extractors)
        self.chunks = setup.chunks()
        count = len(setup.seeds)
        self.groups = min(groups, count // 2) if count >= 4 else 0
        self._teachers: dict[tuple[str, str], Reference] = {}

    def numbers(self, cell: CellFolder, teacher: CellFolder | None) -> Numbers:
        """Return the numbers of a cell.

        Parameters
        ----------
        cell : CellFolder
            With all chunks.
        teacher : CellFolder or None
            The teacher's, with all chunks; None if the cell is the teacher's own.
        """
        path = cell.path / f"numbers-{self._identity(teacher)}.json"
        try:
            return Numbers.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            found = self._measure(cell, teacher)
        write_file(path, (json.dumps(found.to_dict(), indent=2, allow_nan=False) + "\n").encode())
        return found

    def _identity(self, teacher: CellFolder | None) -> str:
        return short_hash(
            {
                "format_version": FORMAT_VERSION,
                "chunks": [chunk.identity for chunk in self.chunks],
                "teacher": None if teacher is None else teacher.path.name,
                "reference": None if self.data is None else self.data.sha256,
                "groups": self.groups,
                "neighbors": NEIGHBORS,
            }
        )

    def _measure(self, cell: CellFolder, teacher: CellFolder | None) -> Numbers:
        records, values = self._read(cell)
        estimates = {
            key: mean_estimate(numbers, self.groups) if self.groups else Estimate(float(numbers.mean()))
            for key, numbers in values.items()
        }
        provenance: dict[str, Any] = {}
        for number, extractor in enumerate(self.setup.extractors):
            further = extractor.name if number else ""
            with cell.mapped(features_name(extractor.name), self.chunks) as features:
                for group, reference in self._references(extractor, teacher).items():
                    measured = measure(
                        features,
                        reference,
                        extractor=extractor,
                        k=NEIGHBORS,
                        groups=self.groups,
                        paired=group == "teacher",  # samples of one seed share their noise
                        device=self.setup.denoiser.device,
                    )
                    provenance[measure_key(group, features=further)] = asdict(measured.provenance)
                    for name in METRICS:
                        estimate = measured.estimate(name)
                        if estimate is not None:
                            estimates[measure_key(group, name, further)] = estimate
        finite = {key: e for key, e in estimates.items() if all(map(math.isfinite, (e.value, *e.replicates)))}
        times, timing = _timing(records, self.setup.full_batch)
        return Numbers(records[0]["nfe"], times, timing, finite, provenance)

    def _read(self, cell: CellFolder) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        """Return the chunks' records, and the distances of all samples; samples and features stay on disk."""
        records = []
        parts: dict[str, list[Tensor]] = defaultdict(list)
        for chunk in self.chunks:
            result = cell.require(chunk)
            records.append(result.record)
            for key in _PER_SAMPLE:
                if key in result.tensors:
                    parts[key].append(result.tensors[key])
        return records, {key: torch.cat(values) for key, values in parts.items()}

    def _references(self, extractor: FeatureExtractor, teacher: CellFolder | None) -> dict[str, Reference]:
        """Return what the features of an extractor are compared with, by groups of measures."""
        found = {}
        if teacher is not None:
            found["teacher"] = self._teacher_reference(extractor, teacher)
        if self.data is not None and extractor is self.data_extractor:
            found["data"] = self.data
        return found

    def _teacher_reference(self, extractor: FeatureExtractor, teacher: CellFolder) -> Reference:
        """Return the teacher's samples as a reference, made once for all solvers."""
        key = teacher.path.name, extractor.name
        if key not in self._teachers:
            with teacher.mapped(features_name(extractor.name), self.chunks) as features:
                if not all_finite(features):
                    raise ValueError(
                        "The teacher's own samples are not finite; check the network and its solver."
                    )
                self._teachers[key] = Reference.from_features(
                    f"the teacher's {len(features)} samples of the same seeds", features, extractor.describe()
                )
        return self._teachers[key]


def _timing(records: Sequence[dict[str, Any]], full_batch: int) -> tuple[float | None, dict[str, Any]]:
    times = [time for record in records for time in record["ms_per_image"]]
    timing = {
        "batches": len(times),
        "batch_size": full_batch,
        "devices": sorted({record["device"] for record in records}),
        "threads": sorted({record["threads"] for record in records if record["threads"] is not None}),
    }
    return (statistics.median(times) if times else None), timing
