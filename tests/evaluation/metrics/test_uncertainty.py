import math

import numpy as np
import pytest
import scipy.stats
import torch
from metric_tools import normal

from gas_ext.evaluation.metrics import METRICS, Estimate, Reference, jackknife, mean_estimate, measure
from gas_ext.evaluation.metrics.uncertainty import student_t_quantile


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 10, 19, 49, 400])
@pytest.mark.parametrize("probability", [0.5, 0.6, 0.9, 0.975, 0.9995])
def test_quantiles_agree_with_scipy(degrees, probability):
    found = student_t_quantile(probability, degrees)
    assert found == pytest.approx(scipy.stats.t.ppf(probability, degrees), rel=1e-8, abs=1e-9)


def test_standard_error_of_a_mean():
    """With one sample per group it is exactly s / sqrt(n)."""
    values = np.random.default_rng(0).normal(size=30)
    estimate = mean_estimate(torch.from_numpy(values), groups=30)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.standard_error == pytest.approx(scipy.stats.sem(values), rel=1e-10)
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert estimate.interval(0.9) == pytest.approx((expected.low, expected.high), rel=1e-8)


def test_differences_are_paired():
    """The interval is that of a paired t-test, although the intervals of both estimates are wide."""
    rng = np.random.default_rng(1)
    a = rng.normal(size=20) * 10
    b = a + 0.5 + rng.normal(size=20) * 0.1
    difference = mean_estimate(torch.from_numpy(b), 20) - mean_estimate(torch.from_numpy(a), 20)
    expected = scipy.stats.ttest_rel(b, a).confidence_interval(0.95)
    assert difference.interval() == pytest.approx((expected.low, expected.high), rel=1e-7)
    assert not difference.is_noise()
    assert (mean_estimate(a, 20) - mean_estimate(rng.permutation(a), 20)).is_noise()


def test_intervals_cover_at_their_level():
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(400):
        values = rng.exponential(size=(200, 1))
        # A metric other than the mean: the variance, 1 for this distribution.
        estimate = jackknife(lambda rows, values=values: float(values[rows].var(ddof=1)), 200, groups=20)
        low, high = estimate.interval(0.9)
        covered += low <= 1 <= high
    assert 0.8 < covered / 400 < 0.95


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_errors_of_all_metrics_match_their_scatter(shift):
    """Errors from one set of seeds against the scatter over 40 sets."""
    reference = Reference.from_features("normal", normal(0, 300, 4))
    runs = [measure(normal(seed, 300, 4, mean=shift), reference, groups=15) for seed in range(1, 41)]
    for metric in METRICS:
        estimates = [run.estimate(metric) for run in runs]
        scatter = np.std([estimate.value for estimate in estimates], ddof=1)
        errors = np.sqrt(np.mean([estimate.standard_error**2 for estimate in estimates]))
        # Recall and coverage depend on single samples, which the jackknife overestimates.
        most = 2.5 if metric in ("recall", "coverage") else 1.4
        assert 0.7 < errors / scatter < most, (metric, errors, scatter)


def test_missing_replicates_and_nan_are_noise():
    alone = Estimate(3.0)
    assert math.isnan(alone.standard_error)
    assert (alone - Estimate(1.0)).is_noise()
    assert Estimate(math.nan, (math.nan, math.nan)).is_noise()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Estimate(1.0, (1.0, 1.0)) - Estimate(1.0, (1.0, 1.0, 1.0)), "not paired"),
        (lambda: Estimate(1.0, (1.0,)), "at least 2"),
        (lambda: Estimate(1.0, (1.0, 1.1)).interval(1.0), "level is 1.0"),
        (lambda: jackknife(lambda rows: 0.0, 3, groups=4), "groups"),
    ],
)
def test_groups_that_do_not_fit_are_rejected(call, message):
    with pytest.raises(ValueError, match=message):
        call()
