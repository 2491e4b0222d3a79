import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_tools import mapped, normal, without

import gas_ext.evaluation.metrics.neighbors as module
from gas_ext.evaluation.metrics import neighbor_metrics
from gas_ext.evaluation.metrics.arrays import group_slices
from gas_ext.evaluation.metrics.neighbors import neighbor_tables


def brute_force(samples, reference, k):
    """The definitions of arXiv 1904.06991 and 2002.09797, literally."""

    def distance(a, b):
        return np.sqrt(((a - b) ** 2).sum())

    def radius(vectors, i):
        return sorted(distance(vectors[i], vectors[j]) for j in range(len(vectors)) if j != i)[k - 1]

    samples, reference = np.asarray(samples), np.asarray(reference)
    real = [radius(reference, i) for i in range(len(reference))]
    fake = [radius(samples, i) for i in range(len(samples))]
    inside = np.array([[distance(y, x) <= r for x, r in zip(reference, real, strict=True)] for y in samples])
    reached = np.array([[distance(y, x) <= r for x in reference] for y, r in zip(samples, fake, strict=True)])
    return (
        inside.any(axis=1).mean(),
        reached.any(axis=0).mean(),
        inside.sum() / (k * len(samples)),
        inside.any(axis=0).mean(),
    )


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.integers(1, 5), st.integers(7, 25), st.integers(7, 25), st.integers(1, 4))
def test_it_agrees_with_the_definition(seed, k, count, reference_count, size):
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(count, size, generator=generator, dtype=torch.float64) * 1.5 + 0.3
    reference = torch.randn(reference_count, size, generator=generator, dtype=torch.float64)
    assert neighbor_metrics(samples, reference, k) == pytest.approx(brute_force(samples, reference, k))


def test_equal_sets():
    reference = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    found = neighbor_metrics(reference, reference)
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)
    # Every ball contains its center and k neighbors.
    assert found.density == pytest.approx(6 / 5)


def test_copies_of_one_vector():
    """A collapsed sampler: balls of radius 0 at 1e3 from the origin, where rounding could open them."""
    reference = normal(0, 50, 8, mean=1e3)
    collapsed = reference[:1].repeat(30, 1)
    found = neighbor_metrics(collapsed, reference)
    assert found.precision == 1
    assert found.recall == pytest.approx(1 / 50)  # of itself alone
    assert found.coverage == pytest.approx(brute_force(collapsed, reference, 5)[3])


def test_replicates_are_the_metrics_without_each_group():
    samples, reference = normal(2, 47, 3, std=1.2), normal(3, 33, 3)
    tables = torch.stack(neighbor_tables(samples, reference, k=3, groups=6), dim=1)
    assert tables[0].tolist() == pytest.approx(list(neighbor_metrics(samples, reference, 3)))
    for part, found in zip(group_slices(47, 6), tables[1:], strict=True):
        assert found.tolist() == pytest.approx(list(neighbor_metrics(without(samples, part), reference, 3)))


def test_it_does_not_depend_on_the_tiles(monkeypatch, tmp_path):
    samples, reference = normal(4, 90, 3), normal(5, 70, 3, std=1.3)
    whole = torch.stack(neighbor_tables(samples, reference, 5, 4))
    for tile, width in ((60, 20), (1000, 7)):
        monkeypatch.setattr(module, "TILE", tile)
        monkeypatch.setattr(module, "_WIDTH", width)
        found = torch.stack(neighbor_tables(mapped(samples, tmp_path), mapped(reference, tmp_path), 5, 4))
        torch.testing.assert_close(found, whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("count", "k", "groups", "message"),
    [(5, 5, 0, "at least 6"), (9, 0, 0, "k is 0"), (6, 5, 3, "fewer groups")],
)
def test_too_few_samples_are_rejected(count, k, groups, message):
    with pytest.raises(ValueError, match=message):
        neighbor_tables(normal(0, count, 2), normal(1, 9, 2), k, groups)
