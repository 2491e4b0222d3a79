"""Uncertainty of a metric over seeds: the delete-a-group jackknife."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from gas_ext._utils.checks import float64_table
from gas_ext.evaluation.metrics.arrays import group_slices


@dataclass(frozen=True)
class Estimate:
    """A metric of all samples, and the same metric without each of G groups of seeds.

    The standard error is ``sqrt((G - 1) / G * sum_g (v_g - mean(v))^2)`` (delete-a-group jackknife). It
    measures the variation over the seeds of the samples: the reference is taken as fixed, and a bias that
    depends on the number of samples is not corrected. It overestimates (Efron and Stein, 1981): hardly for
    smooth metrics, up to threefold for differences of recall and coverage, which depend on single samples.

    Parameters
    ----------
    value : float
        The metric of all samples.
    replicates : tuple of float
        The metric without group 0, 1, ...; at least 2, or empty.

    Examples
    --------
    >>> a, b = Estimate(2.0, (1.9, 2.0, 2.1)), Estimate(2.5, (2.4, 2.5, 2.6))
    >>> round(a.standard_error, 4), round((b - a).standard_error, 4)  # paired: both move together
    (0.1155, 0.0)
    >>> (b - a).is_noise()
    False
    """

    value: float
    replicates: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.replicates) == 1:
            raise ValueError("There is 1 replicate; pass at least 2, or none for no interval.")

    @property
    def standard_error(self) -> float:
        """Standard error of the value; NaN without replicates."""
        groups = len(self.replicates)
        if groups == 0:
            return math.nan
        mean = math.fsum(self.replicates) / groups
        spread = math.fsum((replicate - mean) ** 2 for replicate in self.replicates)
        return math.sqrt((groups - 1) / groups * spread)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the interval of Student's t with G - 1 degrees of freedom; NaNs without replicates."""
        if not 0 <= level < 1:
            raise ValueError(f"level is {level}, but must be at least 0 and below 1.")
        if not self.replicates:
            return math.nan, math.nan
        reach = student_t_quantile((1 + level) / 2, len(self.replicates) - 1) * self.standard_error
        return self.value - reach, self.value + reach

    def is_noise(self, level: float = 0.95) -> bool:
        """Return whether 0 is in the interval: a difference may then be due to the seeds alone.

        Also True without replicates or if a value is not finite.
        """
        low, high = self.interval(level)
        return not (low > 0 or high < 0)

    def __sub__(self, other: Estimate) -> Estimate:
        """Return the difference of two solvers on the same seeds and groups; common variation cancels.

        Raises ValueError if the numbers of groups differ.
        """
        if len(self.replicates) != len(other.replicates):
            raise ValueError(
                f"The estimates have {len(self.replicates)} and {len(other.replicates)} groups, so they are "
                "not paired; measure both on the same seeds with the same groups."
            )
        pairs = zip(self.replicates, other.replicates, strict=True)
        return Estimate(self.value - other.value, tuple(a - b for a, b in pairs))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def jackknife(metric: Callable[[Tensor], float], count: int, groups: int = 20) -> Estimate:
    """Estimate any metric of samples with its replicates.

    Parameters
    ----------
    metric : callable
        Maps increasing int64 indices of samples to the metric of these samples; called ``1 + groups`` times.
    count : int
        Number of samples.
    groups : int
        Number of consecutive groups, at least 2; default 20.

    Examples
    --------
    >>> values = torch.tensor([1.0, 3.0, 1.0, 3.0])
    >>> jackknife(lambda rows: float(values[rows].mean()), 4, groups=2)
    Estimate(value=2.0, replicates=(2.0, 2.0))
    """
    rows = torch.arange(count, device="cpu")
    parts = group_slices(count, groups)
    remaining = [torch.cat([rows[: part.start], rows[part.stop :]]) for part in parts]
    return Estimate(metric(rows), tuple(metric(indices) for indices in remaining))


def mean_estimate(values: Tensor | Sequence[float], groups: int = 20) -> Estimate:
    """Estimate the mean of one number per sample, such as `l1_distances`.

    Examples
    --------
    >>> mean_estimate([0.0, 1.0, 2.0, 3.0], groups=2)
    Estimate(value=1.5, replicates=(2.5, 0.5))
    """
    numbers = float64_table("values", values)
    if numbers.ndim != 1:
        raise ValueError(f"values have shape {tuple(numbers.shape)}, but must be one number per sample.")
    return jackknife(lambda rows: float(numbers[rows].mean()), len(numbers), groups)


def student_t_quantile(probability: float, degrees: int) -> float:
    """Return a quantile of Student's t for a probability in [0.5, 1), by bisection on its distribution."""
    low = NormalDist().inv_cdf(probability)
    high = 2 * low + 1
    while _student_t_cdf(high, degrees) < probability:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_t_cdf(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def _student_t_cdf(t: float, degrees: int) -> float:
    """Return the distribution function for t >= 0.

    It is the integral of ``cos^(degrees-1)`` over [0, a], a = atan(t / sqrt(degrees)), by the recurrence
    J_n = (cos^(n-1)(a) sin(a) + (n - 1) J_(n-2)) / n.
    """
    angle = math.atan(t / math.sqrt(degrees))
    part, whole = (angle, math.pi / 2) if degrees % 2 else (math.sin(angle), 1.0)  # J_0, J_1
    for n in range(2 if degrees % 2 else 3, degrees, 2):
        part = (math.cos(angle) ** (n - 1) * math.sin(angle) + (n - 1) * part) / n
        whole *= (n - 1) / n
    return 0.5 + 0.5 * part / whole
