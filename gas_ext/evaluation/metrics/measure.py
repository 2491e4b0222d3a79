"""All distances between two distributions of images in one call, with their provenance."""

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
    """How a number was measured: two numbers compare only if all of this is the same.

    Parameters
    ----------
    extractor : dict or None
        `FeatureExtractor.describe`: name, weights, resize, quantization; None if unknown.
    samples : int
        Number of samples.
    reference, reference_sha256, reference_count
        Name, hash and number of images of the reference.
    k, groups, paired
        As passed to `measure`.
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

    The Frechet distance and the kernel distance are FID and KID only with Inception features; their names
    are in ``provenance.extractor["frechet_name"]`` and ``["kernel_name"]``. All are None if a feature is not
    finite; all except `frechet` are None if the reference has no features.
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
        """Return one of `METRICS` with its replicates, or None if it was not measured."""
        if metric not in METRICS:
            raise ValueError(f"The metric {metric!r} is unknown; use one of {', '.join(METRICS)}.")
        value = getattr(self, metric)
        return None if value is None else Estimate(value, self.replicates.get(metric, ()))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Measured:
        """Rebuild from `to_dict`, also after a round trip through JSON."""
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
        ``(N, F)``, in the order of the seeds; may be memory-mapped.
    reference : Reference
        Statistics, and features if known, of the images to compare with.
    extractor : FeatureExtractor, optional
        The network that made the features; must match the reference's if that is known, and is recorded
        with the numbers. Default: the reference's.
    k : int
        Which neighbor precision, recall, density and coverage use; default 5.
    groups : int
        Groups of consecutive samples for the jackknife: 0 (default) for none, or at least 2; 20 is a good
        choice. Every metric is then also measured without each group; the Frechet distance costs `groups`
        times as much.
    paired : bool
        Whether row i of samples and reference were made from the same noise; default False. The Frechet and
        kernel distances then leave groups out on both sides, and the latter the pairs of equal rows.
    device : device
        Where pairs of vectors are compared; default "cpu". Frechet distances are computed on the CPU.

    Raises
    ------
    ValueError
        If the extractors differ, there are too few samples, or paired features are missing.

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
        raise TypeError(
            f"The reference is a {type(reference).__name__}, but must be a Reference; use Reference.load or "
            "Reference.from_features."
        )
    check_features(features, 2, len(reference.statistics.mean))
    if groups == 1 or groups < 0:
        raise ValueError(f"groups is {groups}, but must be at least 2, or 0 for no jackknife.")
    if len(features) < 2 * groups:
        raise ValueError(
            f"groups is {groups}, but {len(features)} samples make at most {len(features) // 2} groups of 2; "
            "use fewer groups."
        )
    if paired and (reference.features is None or len(reference.features) != len(features)):
        raise ValueError(
            f"The reference {reference.name!r} does not have {len(features)} features to pair the samples "
            "with; use features of the same seeds, or paired=False."
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
    """Return the Frechet distance of all samples, then without each group."""
    whole, other = feature_statistics(features), reference.statistics
    pairs = [(whole, other)]
    for part in group_slices(len(features), groups) if groups else ():
        rest = remove_statistics(whole, feature_statistics(features[part]))
        if paired:
            assert reference.features is not None
            other = remove_statistics(reference.statistics, feature_statistics(reference.features[part]))
        pairs.append((rest, other))
    return [frechet_distance(*own[:2], *other[:2]) for own, other in pairs]


def agreed_extractor(extractor: FeatureExtractor | None, reference: Reference) -> dict[str, Any] | None:
    """Return the description of the extractor; ValueError if that of the reference differs."""
    own = None if extractor is None else extractor.describe()
    other = None if reference.extractor is None else dict(reference.extractor)
    if own is not None and other is not None and comparable(own) != comparable(other):
        names = [name for name, value in comparable(own).items() if value != comparable(other).get(name)]
        raise ValueError(
            f"The features and the reference {reference.name!r} were made differently ("
            + "; ".join(f"{name}: {own[name]!r} against {other.get(name)!r}" for name in names)
            + "); make both with one extractor."
        )
    return own or other


def comparable(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a description that must be equal for features to compare.

    The rule by which samples became bytes is not part of it: real images were bytes to begin with.

    >>> comparable({"extractor": "pixels", "quantization": "uint8-truncated"})
    {'extractor': 'pixels', 'quantization': 'uint8'}
    """
    rule = description.get("quantization")
    return {**description, "quantization": "uint8" if rule == "uint8-truncated" else rule}
