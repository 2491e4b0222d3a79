"""From the stored chunks of a solver to its numbers, with their uncertainty over seeds."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from gas_ext._utils.files import write_file
from gas_ext.evaluation.chunks import CellFolder, features_name
from gas_ext.evaluation.features import FeatureExtractor
from gas_ext.evaluation.measures import measure_key
from gas_ext.evaluation.metrics import METRICS, Estimate, Reference, mean_estimate, measure
from gas_ext.evaluation.metrics.arrays import all_finite
from gas_ext.evaluation.metrics.measure import agreed_extractor, comparable
from gas_ext.evaluation.setup import Setup
from gas_ext.samples.manifest import short_hash

FORMAT_VERSION = 1
GROUPS = 20
NEIGHBORS = 5
_PER_SAMPLE = ("l1", "l2", "psnr", "perceptual")


@dataclass(frozen=True)
class Numbers:
    """The numbers of one solver."""

    nfe: int  # network evaluations per sample, counted while sampling
    ms_per_image: float | None  # wall time per sample: the median over all full batches
    timing: dict[str, Any]  # number and size of these batches, devices, threads
    estimates: dict[str, Estimate]  # by keys of measures, only finite ones
    # How distances of distributions were measured: by "teacher" and "data", or "teacher@NAME" and so on.
    provenance: dict[str, Any] = field(default_factory=dict)


_NUMBERS = TypeAdapter(Numbers)


class Judge:
    """Computes numbers from chunks, and stores them with the chunks.

    The groups of the jackknife are at most half as many as the seeds. Raises ValueError if there is 1 group,
    or no extractor fits the reference `data`.
    """

    def __init__(self, setup: Setup, data: Reference | None, groups: int = GROUPS) -> None:
        if groups == 1 or groups < 0:
            raise ValueError(f"groups is {groups}, but must be at least 2, or 0 for no confidence intervals.")
        self.setup, self.data = setup, data
        self.data_extractor = None if data is None else extractor_of(data, setup.extractors)
        self.chunks = setup.chunks()
        count = len(setup.seeds)
        self.groups = min(groups, count // 2) if count >= 4 else 0
        self._teachers: dict[tuple[str, str], Reference] = {}

    def numbers(self, cell: CellFolder, teacher: CellFolder | None) -> Numbers:
        """Return the numbers of a complete cell; `teacher` is None if the cell is the teacher's own."""
        path = cell.path / f"numbers-{self._identity(teacher)}.json"
        try:
            return _NUMBERS.validate_python(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, RecursionError):
            found = self._measure(cell, teacher)
        write_file(path, (json.dumps(asdict(found), indent=2, allow_nan=False) + "\n").encode())
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
        """Return the chunks' records and the distances of all samples; samples and features stay on disk."""
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
        """Return the references for an extractor's features, by groups of measures."""
        found = {}
        if teacher is not None:
            found["teacher"] = self._teacher_reference(extractor, teacher)
        if self.data is not None and extractor is self.data_extractor:
            found["data"] = self.data
        return found

    def _teacher_reference(self, extractor: FeatureExtractor, teacher: CellFolder) -> Reference:
        """Return the teacher's samples as a reference, computed once for all solvers."""
        key = teacher.path.name, extractor.name
        if key not in self._teachers:
            with teacher.mapped(features_name(extractor.name), self.chunks) as features:
                if not all_finite(features):
                    raise ValueError("The teacher's samples are not finite; check the network and solver.")
                self._teachers[key] = Reference.from_features(
                    f"the teacher's {len(features)} samples of the same seeds", features, extractor.describe()
                )
        return self._teachers[key]


def extractor_of(reference: Reference, extractors: Sequence[FeatureExtractor]) -> FeatureExtractor:
    """Return the extractor of a reference, or the first that fits if none is recorded; else ValueError."""
    size = len(reference.statistics.mean)
    fitting = [extractor for extractor in extractors if extractor.size == size]
    recorded = None if reference.extractor is None else comparable(reference.extractor)
    for extractor in fitting:
        if recorded in (None, comparable(extractor.describe())):
            return extractor
    if fitting:
        agreed_extractor(fitting[0], reference)  # raises an error that lists the differences
    names = ", ".join(f"{extractor.name} ({extractor.size})" for extractor in extractors) or "no features"
    raise ValueError(
        f"The reference {reference.name!r} has {size} features, which does not fit {names}; use the features "
        "that it was made with."
    )


def _timing(records: Sequence[dict[str, Any]], full_batch: int) -> tuple[float | None, dict[str, Any]]:
    times = [time for record in records for time in record["ms_per_image"]]
    timing = {
        "batches": len(times),
        "batch_size": full_batch,
        "devices": sorted({record["device"] for record in records}),
        "threads": sorted({record["threads"] for record in records if record["threads"] is not None}),
    }
    return (statistics.median(times) if times else None), timing
