"""How far a metric moves with the seeds: the delete-a-group jackknife."""

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

    The standard error is ``sqrt((G - 1) / G * sum_g (v_g - mean(v))^2)`` (delete-a-group jackknife). It tells
    how far the number moves with the seeds of the samples; the reference is taken as fixed, and a bias that
    depends on the number of samples is not corrected. By the inequality of Efron and Stein (1981) it errs
    upwards: hardly for smooth metrics, but up to threefold for differences of recall and coverage, which hang
    on single samples.

    Parameters
    ----------
    value : float
        The metric of all samples.
    replicates : tuple of float
        The metric without group 0, 1, ...; at least 2, or none.

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
            raise ValueError("one group has no spread: take at least 2 groups, or none")

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
        """Confidence interval of Student's t with G - 1 degrees of freedom; NaNs without replicates."""
        if not self.replicates:
            return math.nan, math.nan
        reach = student_t_quantile((1 + level) / 2, len(self.replicates) - 1) * self.standard_error
        return self.value - reach, self.value + reach

    def is_noise(self, level: float = 0.95) -> bool:
        """Whether 0 lies inside the interval: of a difference, that it may be due to the seeds alone.

        True, too, without replicates or if a value is not finite: then nothing shows a difference.
        """
        low, high = self.interval(level)
        return not (low > 0 or high < 0)

    def __sub__(self, other: Estimate) -> Estimate:
        """Difference of two solvers on the same seeds and groups; what moves both with the seeds cancels.

        Raises
        ------
        ValueError
            If the numbers of groups differ.
        """
        if len(self.replicates) != len(other.replicates):
            raise ValueError(
                f"estimates with {len(self.replicates)} and {len(other.replicates)} groups are not paired; "
                "measure both on the same seeds with the same groups"
            )
        pairs = zip(self.replicates, other.replicates, strict=True)
        return Estimate(self.value - other.value, tuple(a - b for a, b in pairs))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; `Estimate(**values)` reads them, if lists are made tuples."""
        return asdict(self)


def jackknife(metric: Callable[[Tensor], float], count: int, groups: int = 20) -> Estimate:
    """Estimate any metric of samples with its replicates.

    Parameters
    ----------
    metric : callable
        Maps int64 indices of samples, in rising order, to the metric of these samples; is called
        ``1 + groups`` times.
    count : int
        Number of samples.
    groups : int
        Number of consecutive groups, at least 2.

    Examples
    --------
    >>> values = torch.tensor([1.0, 3.0, 1.0, 3.0])
    >>> jackknife(lambda kept: float(values[kept].mean()), 4, groups=2)
    Estimate(value=2.0, replicates=(2.0, 2.0))
    """
    everything = torch.arange(count, device="cpu")
    kept = [
        torch.cat([everything[: part.start], everything[part.stop :]]) for part in group_slices(count, groups)
    ]
    return Estimate(metric(everything), tuple(metric(indices) for indices in kept))


def mean_estimate(values: Tensor | Sequence[float], groups: int = 20) -> Estimate:
    """Estimate the mean of one number per sample, such as `l1_distances`.

    Examples
    --------
    >>> mean_estimate([0.0, 1.0, 2.0, 3.0], groups=2)
    Estimate(value=1.5, replicates=(2.5, 0.5))
    """
    numbers = float64_table("values", values)
    if numbers.ndim != 1:
        raise ValueError(f"values have shape {tuple(numbers.shape)}; expected one number per sample")
    return jackknife(lambda kept: float(numbers[kept].mean()), len(numbers), groups)


def student_t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t, by bisection on its distribution function.

    Examples
    --------
    >>> round(student_t_quantile(0.975, 19), 4)
    2.093
    """
    if not 0.5 <= probability < 1 or degrees < 1:
        raise ValueError(
            f"no quantile {probability} with {degrees} degrees of freedom; take [0.5, 1) and >= 1"
        )
    low = NormalDist().inv_cdf(probability)
    high = 2 * low + 1
    while _student_t_cdf(high, degrees) < probability:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_t_cdf(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def _student_t_cdf(t: float, degrees: int) -> float:
    """Distribution function for t >= 0: an integral of ``cos^(degrees-1)`` up to a = atan(t / sqrt(degrees)).

    That integral over [0, a] is known in steps of two: J_n = (cos^(n-1)(a) sin(a) + (n - 1) J_(n-2)) / n.
    """
    angle = math.atan(t / math.sqrt(degrees))
    part, whole = (angle, math.pi / 2) if degrees % 2 else (math.sin(angle), 1.0)  # J_0, J_1
    for n in range(2 if degrees % 2 else 3, degrees, 2):
        part = (math.cos(angle) ** (n - 1) * math.sin(angle) + (n - 1) * part) / n
        whole *= (n - 1) / n
    return 0.5 + 0.5 * part / whole
