"""How far samples are from the teacher's, one by one and as distributions."""

from gas_ext._utils.distances import (
    finite_or_none,
    l1_distance,
    l1_distances,
    l2_distance,
    l2_distances,
    psnr,
    psnr_values,
)
from gas_ext.evaluation.metrics.kernel import kernel_distance
from gas_ext.evaluation.metrics.measure import METRICS, Measured, Provenance, measure
from gas_ext.evaluation.metrics.moments import (
    Statistics,
    StreamingStatistics,
    feature_statistics,
    frechet_distance,
    merge_statistics,
    remove_statistics,
)
from gas_ext.evaluation.metrics.neighbors import NeighborMetrics, neighbor_metrics
from gas_ext.evaluation.metrics.perceptual import perceptual_distances
from gas_ext.evaluation.metrics.reference import Reference
from gas_ext.evaluation.metrics.uncertainty import Estimate, jackknife, mean_estimate

__all__ = [
    "METRICS",
    "Estimate",
    "Measured",
    "NeighborMetrics",
    "Provenance",
    "Reference",
    "Statistics",
    "StreamingStatistics",
    "feature_statistics",
    "finite_or_none",
    "frechet_distance",
    "jackknife",
    "kernel_distance",
    "l1_distance",
    "l1_distances",
    "l2_distance",
    "l2_distances",
    "mean_estimate",
    "measure",
    "merge_statistics",
    "neighbor_metrics",
    "perceptual_distances",
    "psnr",
    "psnr_values",
    "remove_statistics",
]
