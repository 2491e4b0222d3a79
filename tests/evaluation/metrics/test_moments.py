import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_tools import mapped, normal

from gas_ext.evaluation.metrics import (
    StreamingStatistics,
    feature_statistics,
    frechet_distance,
    merge_statistics,
    remove_statistics,
)


def gaussian(seed, size, rank=None):
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(size, rank or 2 * size, generator=generator, dtype=torch.float64)
    return torch.randn(size, generator=generator, dtype=torch.float64), factor @ factor.T / factor.shape[1]


@pytest.mark.parametrize("size", [1, 3, 20])
def test_frechet_against_scipy_sqrtm(size):
    (mean_a, cov_a), (mean_b, cov_b) = gaussian(0, size), gaussian(1, size)
    root = scipy.linalg.sqrtm((cov_a @ cov_b).numpy())
    expected = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * np.trace(root).real
    assert frechet_distance(mean_a, cov_a, mean_b, cov_b) == pytest.approx(float(expected), rel=1e-10)


def test_frechet_of_commuting_covariances():
    """Diagonal covariances: |mu_a - mu_b|^2 + sum (s_a - s_b)^2 with standard deviations s."""
    generator = torch.Generator().manual_seed(2)
    mean_a, mean_b, std_a, std_b = torch.rand(4, 7, generator=generator, dtype=torch.float64)
    expected = (mean_a - mean_b).square().sum() + (std_a - std_b).square().sum()
    found = frechet_distance(mean_a, std_a.square().diag(), mean_b, std_b.square().diag())
    assert found == pytest.approx(float(expected), rel=1e-12)


def test_frechet_of_rank_deficient_covariances():
    """u u^T and v v^T: tr sqrt(S_a S_b) = |u . v|, where a matrix square root of the product is defective."""
    u, v = torch.tensor([[3.0, 0.0, 4.0], [1.0, 2.0, 0.0]], dtype=torch.float64)
    zero = torch.zeros(3, dtype=torch.float64)
    orthogonal = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    for other, expected in ((v, 25 + 5 - 2 * 3.0), (orthogonal, 26)):
        found = frechet_distance(zero, torch.outer(u, u), zero, torch.outer(other, other))
        assert found == pytest.approx(expected, rel=1e-12)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.integers(1, 12), st.integers(1, 12))
def test_frechet_is_a_squared_distance(seed, size, rank):
    (mean_a, cov_a), (mean_b, cov_b) = gaussian(seed, size, rank), gaussian(seed + 1, size)
    forward = frechet_distance(mean_a, cov_a, mean_b, cov_b)
    assert forward == pytest.approx(frechet_distance(mean_b, cov_b, mean_a, cov_a), rel=1e-9)
    assert forward >= float((mean_a - mean_b).square().sum()) * (1 - 1e-9)
    assert frechet_distance(mean_a, cov_a, mean_a, cov_a) < 1e-10 * float(cov_a.trace())


def test_frechet_rejects_other_shapes_and_nan():
    mean, covariance = gaussian(0, 3)
    with pytest.raises(ValueError, match="one extractor"):
        frechet_distance(mean, covariance, mean[:2], covariance[:2, :2])
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(mean, covariance * float("nan"), mean, covariance)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(1, 5))
def test_streaming_statistics_do_not_depend_on_the_batches(seed, batches, size):
    generator = torch.Generator().manual_seed(seed)
    features = 1e4 + torch.randn(sum(batches) + 2, size, generator=generator, dtype=torch.float64)
    stream = StreamingStatistics()
    for batch in features.split([*batches, 2]):
        stream.update(batch)
    mean, covariance, count = stream.result()
    assert count == len(features)
    np.testing.assert_allclose(mean, features.numpy().mean(0), rtol=1e-12)
    oracle = np.cov(features.numpy(), rowvar=False).reshape(size, size)
    np.testing.assert_allclose(covariance, oracle, rtol=1e-9, atol=1e-11)


def test_float32_and_memory_mapped_features_are_summed_in_float64(tmp_path):
    features = torch.full((5000, 1), 0.1) + torch.arange(5000).view(-1, 1) * 1e-7
    expected = features.double().var(dim=0).item()
    for same in (features, mapped(features, tmp_path)):
        assert feature_statistics(same).covariance.item() == pytest.approx(expected, rel=1e-9)


def test_statistics_reject_too_few_and_mixed_features():
    stream = StreamingStatistics()
    stream.update(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="at least 2"):
        stream.result()
    with pytest.raises(ValueError, match="one extractor"):
        stream.update(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="batch, features"):
        stream.update(torch.zeros(2))


def test_merged_parts_equal_the_whole():
    features = normal(0, 50, 4, mean=1e4)
    parts = [feature_statistics(part) for part in features.split([20, 7, 23])]
    whole = feature_statistics(features)
    for order in (parts, parts[::-1]):
        merged = merge_statistics(order)
        assert merged.size == 50
        torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-12, atol=0)
        torch.testing.assert_close(merged.covariance, whole.covariance, rtol=1e-9, atol=1e-11)


def test_removal_undoes_a_merge():
    features = normal(1, 40, 3, mean=100)
    rest = remove_statistics(feature_statistics(features), feature_statistics(features[10:22]))
    expected = feature_statistics(torch.cat([features[:10], features[22:]]))
    assert rest.size == expected.size == 28
    torch.testing.assert_close(rest.mean, expected.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(rest.covariance, expected.covariance, rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="at least 2"):
        remove_statistics(expected, feature_statistics(features[:27]))


def test_statistics_do_not_depend_on_threads():
    features, found = normal(3, 6000, 30), []
    threads = torch.get_num_threads()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            found.append(feature_statistics(features).covariance)
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)


def test_frechet_agrees_with_clean_fid(clean_fid):
    a, b = normal(6, 300, 20), normal(7, 200, 20, mean=0.1, std=1.3)
    expected = clean_fid.fid_from_feats(a.numpy(), b.numpy())
    found = frechet_distance(*feature_statistics(a)[:2], *feature_statistics(b)[:2])
    assert found == pytest.approx(expected, rel=1e-9)


def test_frechet_agrees_with_torchmetrics():
    torchmetrics = pytest.importorskip("torchmetrics.image.fid")
    identity = torch.nn.Identity()
    identity.num_features = 12
    oracle = torchmetrics.FrechetInceptionDistance(identity)
    a, b = normal(8, 300, 12), normal(9, 200, 12, mean=0.1, std=1.3)
    for features, real in ((a, True), (b, False)):
        for batch in features.split(64):
            oracle.update(batch, real=real)
    found = frechet_distance(*feature_statistics(a)[:2], *feature_statistics(b)[:2])
    assert found == pytest.approx(oracle.compute().item(), rel=1e-9)
