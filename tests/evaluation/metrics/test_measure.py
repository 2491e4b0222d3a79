import dataclasses
import json

import pytest
import torch
from metric_tools import mapped, normal

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


def test_it_is_each_metric_alone():
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
        kept = torch.cat([samples[: part.start], samples[part.stop :]])
        assert replicate == pytest.approx(measure(kept, reference).frechet, rel=1e-9)


def test_every_number_carries_what_it_was_measured_with():
    reference = Reference.from_features("normal", normal(4, 40, 3), MEANS.describe())
    found = measure(normal(5, 30, 3), reference, extractor=MEANS, groups=3)
    values = json.loads(json.dumps(found.to_dict()))
    assert values["provenance"] == {
        "extractor": {
            "extractor": "means",
            "size": 3,
            "weights_sha256": "ab",
            "resize": "none",
            "quantization": "none",
            "input_range": "[-1, 1]",
            "frechet_name": "Frechet distance (means)",
            "kernel_name": "kernel distance (means)",
        },
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


def test_other_extractors_are_refused():
    reference = Reference.from_features("normal", normal(4, 40, 3), MEANS.describe())
    rounded = dataclasses.replace(MEANS, quantization="uint8")
    with pytest.raises(ValueError, match="quantization: 'uint8' against 'none'"):
        measure(normal(5, 30, 3), reference, extractor=rounded)
    with pytest.raises(ValueError, match="one extractor"):
        measure(normal(5, 30, 2), reference)


def test_statistics_alone_give_the_frechet_distance_alone():
    reference = Reference.from_features("normal", normal(6, 40, 3), keep=False)
    found = measure(normal(7, 30, 3), reference)
    assert found.frechet > 0
    assert [getattr(found, name) for name in METRICS[1:]] == [None] * 5
    assert found.estimate("recall") is None
    with pytest.raises(ValueError, match="unknown metric"):
        found.estimate("fid")


def test_a_solver_that_diverged_has_no_numbers():
    samples = normal(8, 30, 3)
    samples[17, 1] = float("nan")
    found = measure(samples, Reference.from_features("normal", normal(9, 40, 3)), groups=5)
    assert [getattr(found, name) for name in METRICS] == [None] * 6
    assert found.replicates == {}


def test_mapped_samples(tmp_path):
    samples = normal(10, 50, 3)
    reference = Reference.from_features("normal", normal(11, 40, 3))
    assert measure(mapped(samples, tmp_path), reference, groups=4) == measure(samples, reference, groups=4)


def test_one_group_is_none():
    with pytest.raises(ValueError, match="at least 2"):
        measure(normal(0, 9, 3), Reference.from_features("normal", normal(1, 9, 3)), groups=1)


def test_paired_samples_are_left_out_on_both_sides():
    """Replicates are the distances of what is left; samples that are the reference's own are at 0."""
    reference_rows = normal(12, 53, 3).float()
    samples = reference_rows * 1.1 + 0.1 * normal(13, 53, 3).float()
    found = measure(samples, Reference.from_features("a", reference_rows), groups=5, paired=True)
    assert found.provenance.paired
    for number, part in enumerate(group_slices(53, 5)):
        kept, others = (
            torch.cat([rows[: part.start], rows[part.stop :]]) for rows in (samples, reference_rows)
        )
        rest = measure(kept, Reference.from_features("a", others), paired=True)
        assert found.replicates["frechet"][number] == pytest.approx(rest.frechet, rel=1e-9)
        assert found.replicates["kid"][number] == pytest.approx(rest.kid, rel=1e-9)
    same = measure(reference_rows, Reference.from_features("a", reference_rows), paired=True)
    assert (same.frechet, same.kid) == (pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12))


def test_only_paired_kernel_distances_are_unbiased_for_shared_noise():
    """Draws of one distribution that share most of their noise: the mean is 0, and the usual one below it."""
    values = []
    for seed in range(200):
        noise = normal(seed, 40, 3)
        reference = Reference.from_features("a", noise)
        samples = 0.8 * noise + 0.6 * normal(1000 + seed, 40, 3)
        values.append([measure(samples, reference, paired=paired).kid for paired in (False, True)])
    usual, paired = torch.tensor(values).T
    assert abs(paired.mean()) < 4 * paired.std() / 200**0.5
    assert usual.mean() < -10 * usual.std() / 200**0.5


def test_what_cannot_be_paired_or_grouped_is_refused():
    reference = Reference.from_features("normal", normal(1, 30, 3))
    with pytest.raises(ValueError, match="no 29 features to be paired"):
        measure(normal(0, 29, 3), reference, paired=True)
    with pytest.raises(ValueError, match="to be paired"):
        measure(normal(0, 30, 3), Reference.from_features("n", normal(1, 30, 3), keep=False), paired=True)
    with pytest.raises(ValueError, match="30 samples do not make 16 groups"):
        measure(normal(0, 30, 3), reference, groups=16)
