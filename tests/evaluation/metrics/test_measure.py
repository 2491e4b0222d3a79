import dataclasses
import json

import pytest
import torch
from metric_tools import mapped, normal, without

from gas_ext.evaluation.features import FeatureExtractor
from gas_ext.evaluation.metrics import (
    METRICS,
    Measured,
    Reference,
    feature_statistics,
    frechet_distance,
    kernel_distance,
    measure,
    neighbor_metrics,
)
from gas_ext.evaluation.metrics.arrays import group_slices

MEANS = FeatureExtractor("means", 3, lambda images: images.mean(dim=(2, 3)), weights_hash="ab")


def test_it_returns_each_metric():
    samples, features = normal(0, 60, 3, mean=0.2), normal(1, 50, 3).float()
    reference = Reference.from_features("normal", features)
    found = measure(samples, reference, k=4)
    a, b = feature_statistics(samples), feature_statistics(features)
    assert found.frechet == frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    assert found.kid == kernel_distance(samples, features)
    four = (found.precision, found.recall, found.density, found.coverage)
    assert four == neighbor_metrics(samples, features, k=4)
    assert found.replicates == {}


def test_replicates_of_the_frechet_distance():
    samples = normal(2, 61, 3)
    reference = Reference.from_features("normal", normal(3, 50, 3))
    found = measure(samples, reference, groups=5)
    assert {name: len(table) for name, table in found.replicates.items()} == dict.fromkeys(METRICS, 5)
    for part, replicate in zip(group_slices(61, 5), found.replicates["frechet"], strict=True):
        assert replicate == pytest.approx(measure(without(samples, part), reference).frechet, rel=1e-9)


def test_every_number_has_its_provenance():
    reference = Reference.from_features("normal", normal(4, 40, 3), MEANS.describe())
    found = measure(normal(5, 30, 3), reference, extractor=MEANS, groups=3)
    values = json.loads(json.dumps(found.to_dict()))
    assert values["provenance"] == {
        "extractor": MEANS.describe(),
        "samples": 30,
        "reference": "normal",
        "reference_sha256": reference.sha256,
        "reference_count": 40,
        "k": 5,
        "groups": 3,
        "paired": False,
    }
    assert Measured.from_dict(values) == found
    assert found.estimate("kid").value == found.kid


def test_other_extractors_are_rejected():
    reference = Reference.from_features("normal", normal(4, 40, 3), MEANS.describe())
    rounded = dataclasses.replace(MEANS, quantization="uint8")
    with pytest.raises(ValueError, match="quantization: 'uint8' against 'none'"):
        measure(normal(5, 30, 3), reference, extractor=rounded)
    with pytest.raises(ValueError, match="one extractor"):
        measure(normal(5, 30, 2), reference)


def test_statistics_give_only_the_frechet_distance():
    reference = Reference.from_features("normal", normal(6, 40, 3), keep=False)
    found = measure(normal(7, 30, 3), reference)
    assert found.frechet > 0
    assert [getattr(found, name) for name in METRICS[1:]] == [None] * 5
    assert found.estimate("recall") is None
    with pytest.raises(ValueError, match="'fid' is unknown"):
        found.estimate("fid")


def test_diverged_samples_have_no_numbers():
    samples = normal(8, 30, 3)
    samples[17, 1] = float("nan")
    found = measure(samples, Reference.from_features("normal", normal(9, 40, 3)), groups=5)
    assert [getattr(found, name) for name in METRICS] == [None] * 6
    assert found.replicates == {}


def test_mapped_samples(tmp_path):
    samples = normal(10, 50, 3)
    reference = Reference.from_features("normal", normal(11, 40, 3))
    assert measure(mapped(samples, tmp_path), reference, groups=4) == measure(samples, reference, groups=4)


def test_paired_samples_are_left_out_on_both_sides():
    """Replicates are the distances of the remaining rows; the reference itself is at distance 0."""
    reference_rows = normal(12, 53, 3).float()
    samples = reference_rows * 1.1 + 0.1 * normal(13, 53, 3).float()
    found = measure(samples, Reference.from_features("a", reference_rows), groups=5, paired=True)
    assert found.provenance.paired
    for number, part in enumerate(group_slices(53, 5)):
        others = Reference.from_features("a", without(reference_rows, part))
        rest = measure(without(samples, part), others, paired=True)
        assert found.replicates["frechet"][number] == pytest.approx(rest.frechet, rel=1e-9)
        assert found.replicates["kid"][number] == pytest.approx(rest.kid, rel=1e-9)
    same = measure(reference_rows, Reference.from_features("a", reference_rows), paired=True)
    assert (same.frechet, same.kid) == (pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12))


@pytest.mark.slow
def test_only_paired_kernel_distances_are_unbiased_for_shared_noise():
    """Draws of one distribution that share most of their noise: the mean is 0, or negative if unpaired."""
    values = []
    for seed in range(200):
        noise = normal(seed, 40, 3)
        reference = Reference.from_features("a", noise)
        samples = 0.8 * noise + 0.6 * normal(1000 + seed, 40, 3)
        values.append([measure(samples, reference, paired=paired).kid for paired in (False, True)])
    unpaired, paired = torch.tensor(values).T
    assert abs(paired.mean()) < 4 * paired.std() / 200**0.5
    assert unpaired.mean() < -10 * unpaired.std() / 200**0.5


@pytest.mark.parametrize(
    ("count", "keep", "options", "message"),
    [
        (29, True, {"paired": True}, "does not have 29 features to pair"),
        (30, False, {"paired": True}, "to pair"),
        (30, True, {"groups": 16}, "30 samples make at most 15 groups"),
        (30, True, {"groups": 1}, "at least 2"),
    ],
)
def test_samples_that_cannot_be_paired_or_grouped_are_rejected(count, keep, options, message):
    reference = Reference.from_features("normal", normal(1, 30, 3), keep=keep)
    with pytest.raises(ValueError, match=message):
        measure(normal(0, count, 3), reference, **options)
