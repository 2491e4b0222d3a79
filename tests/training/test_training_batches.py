import pytest
import torch

from gas_ext.training.batches import Batch, derived_seed, fresh_noise


def test_parts_hold_everything_once():
    condition = {"label": torch.arange(7), "scale": None}
    whole = Batch(torch.randn(7, 2), torch.randn(7, 2), condition, labels=torch.arange(7))
    parts = whole.split(3)
    assert [len(part) for part in parts] == [3, 2, 2]
    assert torch.equal(torch.cat([part.target for part in parts]), whole.target)
    assert torch.equal(torch.cat([part.condition["label"] for part in parts]), torch.arange(7))
    assert all(part.images is None and part.condition["scale"] is None for part in parts)
    assert whole.split(1) == [whole]


def test_more_parts_than_samples():
    with pytest.raises(ValueError, match=r"batch of 2 samples .* 3 parts; lower accumulation"):
        Batch(torch.zeros(2, 1), torch.zeros(2, 1)).split(3)


def test_fresh_noise_follows_from_seed_iteration_and_place_alone():
    whole = fresh_noise(3, 10, range(6), (2, 4))
    assert torch.equal(fresh_noise(3, 10, range(2, 4), (2, 4)), whole[2:4])
    torch.manual_seed(5)
    assert torch.equal(fresh_noise(3, 10, range(6), (2, 4)), whole)
    others = [fresh_noise(4, 10, range(6), (2, 4)), fresh_noise(3, 11, range(6), (2, 4))]
    assert not any(torch.equal(other, whole) for other in others)


def test_fresh_noise_is_standard_normal():
    noise = torch.stack([fresh_noise(0, i, range(8), (16,)) for i in range(50)])
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1) < 0.05
    assert len(noise.flatten(0, 1).unique(dim=0)) == 400


def test_derived_seeds_fit_the_generators_of_noise():
    seeds = {derived_seed(0, "fresh noise", i, j) for i in range(100) for j in range(10)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**32 for seed in seeds)
