"""All distances between two distributions of images in one call, with what they were measured with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from gas_ext.evaluation.features.extractor import FeatureExtractor
from gas_ext.evaluation.metrics.arrays import Features, all_finite, check_features, group_slices
from gas_ext.evaluation.metrics.kernel import kernel_distances
from gas_ext.evaluation.metrics.moments import feature_statistics, frechet_distance, remove_statistics
from gas_ext.evaluation.metrics.neighbors import neighbor_tables
from gas_ext.evaluation.metrics.reference import Reference
from gas_ext.evaluation.metrics.uncertainty import Estimate

METRICS = ("frechet", "kid", "precision", "recall", "density", "coverage")


@dataclass(frozen=True)
class Provenance:
    """What a number was measured with.

    Parameters
    ----------
    extractor : dict or None
        `FeatureExtractor.describe`: name, weights, resize, quantization; None if not given.
    samples : int
        Number of samples.
    reference, reference_sha256, reference_count
        Name, hash and number of images of the reference.
    k : int
        Neighbor of precision, recall, density and coverage.
    groups : int
        Groups of the jackknife; 0 without one.
    paired : bool
        Whether samples and reference share their seeds.
    """

    extractor: dict[str, Any] | None
    samples: int
    reference: str
    reference_sha256: str
    reference_count: int | None
    k: int
    groups: int
    paired: bool = False


@dataclass(frozen=True)
class Measured:
    """Distances of samples to a reference.

    The Frechet distance and the kernel distance are FID and KID only with Inception's features:
    ``provenance.extractor["frechet_name"]`` and ``["kernel_name"]`` say what they are called.
    All are None if a feature is not finite; all but `frechet` if the reference has no features.
    """

    frechet: float | None
    kid: float | None
    precision: float | None
    recall: float | None
    density: float | None
    coverage: float | None
    provenance: Provenance
    replicates: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def estimate(self, metric: str) -> Estimate | None:
        """Return one of `METRICS` with its replicates, or None where it was not measured."""
        if metric not in METRICS:
            raise ValueError(f"unknown metric {metric!r}: use one of {', '.join(METRICS)}")
        value = getattr(self, metric)
        return None if value is None else Estimate(value, self.replicates.get(metric, ()))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Measured:
        """Read what `to_dict` returned, also after JSON made lists of tuples."""
        replicates = {name: tuple(row) for name, row in values["replicates"].items()}
        provenance = Provenance(**values["provenance"])
        return cls(**{**values, "provenance": provenance, "replicates": replicates})


def measure(
    features: Features,
    reference: Reference,
    *,
    extractor: FeatureExtractor | None = None,
    k: int = 5,
    groups: int = 0,
    paired: bool = False,
    device: str | torch.device = "cpu",
) -> Measured:
    """Measure all distances of samples to a reference.

    Parameters
    ----------
    features : Tensor or ndarray
        ``(N, F)``, in the order of the seeds; may be mapped from disk.
    reference : Reference
        What they are compared with.
    extractor : FeatureExtractor, optional
        The network that made the features; checked against the reference's own, where that is known, and
        recorded with the numbers. If not given, the reference's is.
    k : int
        Neighbor of precision, recall, density and coverage.
    groups : int
        Groups of consecutive samples for the jackknife, at least 2, or 0 for none. Every metric is then
        also measured without each group; the Frechet distance costs `groups` times as much.
    paired : bool
        Whether row i of samples and of reference were made from the same noise. Groups are then left out of
        both for the Frechet and the kernel distance, and the latter leaves out the pairs of one row.
    device : device
        Where pairs of vectors are compared; Frechet distances are computed on the CPU.

    Returns
    -------
    Measured

    Raises
    ------
    ValueError
        If the extractors differ, there are too few samples, or none to be paired with.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> reference = Reference.from_features("normal", torch.randn(500, 2, generator=generator))
    >>> measured = measure(torch.randn(500, 2, generator=generator) + 3, reference, groups=10)
    >>> round(measured.frechet), measured.recall < 0.2
    (18, True)
    >>> low, high = measured.estimate("frechet").interval()
    >>> low < 18 < high
    True
    """
    if not isinstance(reference, Reference):
        raise TypeError(f"the reference is a {type(reference).__name__}; make one with Reference.load")
    check_features(features, 2, len(reference.statistics.mean))
    if groups == 1 or groups < 0:
        raise ValueError(f"{groups} groups have no spread: take at least 2, or 0 for no jackknife")
    if len(features) < 2 * groups:
        raise ValueError(
            f"{len(features)} samples do not make {groups} groups of 2 and more; take fewer groups"
        )
    if paired and (reference.features is None or len(reference.features) != len(features)):
        raise ValueError(
            f"the reference {reference.name!r} has no {len(features)} features to be paired with"
        )
    provenance = Provenance(
        extractor=agreed_extractor(extractor, reference),
        samples=len(features),
        reference=reference.name,
        reference_sha256=reference.sha256,
        reference_count=reference.count,
        k=k,
        groups=groups,
        paired=paired,
    )
    tables: dict[str, list[float]] = {}
    if all_finite(features):
        tables["frechet"] = _frechet_distances(features, reference, groups, paired)
        if reference.features is not None:
            tables["kid"] = kernel_distances(features, reference.features, groups, device, paired).tolist()
            columns = neighbor_tables(features, reference.features, k, groups, device)
            tables.update(zip(METRICS[2:], (column.tolist() for column in columns), strict=True))
    return Measured(
        **{name: tables[name][0] if name in tables else None for name in METRICS},
        provenance=provenance,
        replicates={name: tuple(table[1:]) for name, table in tables.items() if groups},
    )


def _frechet_distances(features: Features, reference: Reference, groups: int, paired: bool) -> list[float]:
    """Frechet distance of all samples, then without each group."""
    whole, other = feature_statistics(features), reference.statistics
    kept = [(whole, other)]
    for part in group_slices(len(features), groups) if groups else ():
        rest = remove_statistics(whole, feature_statistics(features[part]))
        if paired:
            assert reference.features is not None
            other = remove_statistics(reference.statistics, feature_statistics(reference.features[part]))
        kept.append((rest, other))
    return [frechet_distance(*own[:2], *other[:2]) for own, other in kept]


def agreed_extractor(extractor: FeatureExtractor | None, reference: Reference) -> dict[str, Any] | None:
    """Return the one description of features and reference; ValueError if there are two that differ."""
    own = None if extractor is None else extractor.describe()
    other = None if reference.extractor is None else dict(reference.extractor)
    if own is not None and other is not None and comparable(own) != comparable(other):
        names = [name for name, value in comparable(own).items() if value != comparable(other).get(name)]
        raise ValueError(
            f"the features and the reference {reference.name!r} were made differently ("
            + "; ".join(f"{name}: {own[name]!r} against {other.get(name)!r}" for name in names)
            + "); make both with one extractor"
        )
    return own or other


def comparable(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must be equal in two descriptions for their features to compare.

    By which rule samples became bytes is not among it: real images have always been bytes.

    Examples
    --------
    >>> comparable({"extractor": "pixels", "quantization": "uint8-truncated"})
    {'extractor': 'pixels', 'quantization': 'uint8'}
    """
    rule = description.get("quantization")
    return {**description, "quantization": "uint8" if rule == "uint8-truncated" else rule}
