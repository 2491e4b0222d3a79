import pytest
import torch
from metric_tools import mapped, normal, without

import gas_ext.evaluation.metrics.kernel as module
from gas_ext.evaluation.metrics import kernel_distance
from gas_ext.evaluation.metrics.arrays import group_slices
from gas_ext.evaluation.metrics.kernel import kernel_distances


def test_it_agrees_with_clean_fid(clean_fid):
    a, b = normal(0, 200, 6), normal(1, 200, 6, mean=0.2)
    # One subset of all samples, so nothing is random.
    expected = clean_fid.kernel_distance(a.numpy(), b.numpy(), num_subsets=1, max_subset_size=1000)
    assert kernel_distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_subsets_of_clean_fid_scatter_around_it(clean_fid):
    a, b = normal(2, 400, 6), normal(3, 300, 6, mean=0.3)
    subsets = [clean_fid.kernel_distance(a.numpy(), b.numpy(), 1, max_subset_size=100) for _ in range(300)]
    mean, error = torch.tensor(subsets).mean(), torch.tensor(subsets).std() / 300**0.5
    assert abs(kernel_distance(a, b) - mean) < 5 * error


def test_it_agrees_with_torchmetrics():
    torchmetrics = pytest.importorskip("torchmetrics.image.kid")
    oracle = torchmetrics.KernelInceptionDistance(torch.nn.Identity(), subsets=1, subset_size=150)
    a, b = normal(4, 150, 5), normal(5, 150, 5, std=1.5)
    oracle.update(a, real=True)
    oracle.update(b, real=False)
    assert kernel_distance(a, b) == pytest.approx(oracle.compute()[0].item(), rel=1e-9)


def test_it_is_unbiased():
    """Its mean is 0 for two equal distributions, although single distances are not 0."""
    values = torch.tensor([kernel_distance(normal(i, 30, 3), normal(1000 + i, 40, 3)) for i in range(400)])
    assert abs(values.mean()) < 4 * values.std() / 20
    assert values.min() < 0 < values.max()


def test_closed_form_of_gaussians():
    """One dimension, x ~ N(0, 1), y ~ N(m, 1): E (x y + 1)^3 = sum_k C(3, k) E x^k E y^k."""
    mean = 0.7
    moments = [torch.tensor([1, m, m**2 + 1, m**3 + 3 * m], dtype=torch.float64) for m in (0.0, mean)]
    binomials = torch.tensor([1, 3, 3, 1], dtype=torch.float64)

    def kernel(a, b):
        return (binomials * a * b).sum()

    x, y = moments
    expected = kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)
    found = [kernel_distance(normal(i, 1000, 1), normal(100 + i, 1000, 1, mean=mean)) for i in range(20)]
    scatter = torch.tensor(found).std() / 20**0.5
    assert abs(torch.tensor(found).mean() - expected) < 4 * scatter
    assert scatter < 0.05 * expected


def test_replicates_are_the_distance_without_each_group():
    a, b = normal(6, 53, 4), normal(7, 31, 4, mean=1)
    table = kernel_distances(a, b, groups=5)
    assert table[0].item() == pytest.approx(kernel_distance(a, b), rel=1e-12)
    for part, found in zip(group_slices(53, 5), table[1:], strict=True):
        assert found.item() == pytest.approx(kernel_distance(without(a, part), b), rel=1e-10)


def test_it_does_not_depend_on_the_tiles(monkeypatch, tmp_path):
    a, b = normal(8, 90, 4), normal(9, 70, 4, mean=0.5)
    whole = kernel_distance(a, b)
    for tile in (49, 900):
        monkeypatch.setattr(module, "TILE", tile)
        assert kernel_distance(mapped(a, tmp_path), mapped(b, tmp_path)) == pytest.approx(whole, rel=1e-11)


@pytest.mark.parametrize(("shape", "message"), [((5, 2), "one extractor"), ((1, 3), "at least 2")])
def test_features_that_do_not_fit_are_rejected(shape, message):
    with pytest.raises(ValueError, match=message):
        kernel_distance(normal(0, *shape), normal(0, 5, 3))
