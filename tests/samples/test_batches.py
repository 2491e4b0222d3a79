import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gas_ext.samples import ShuffledBatches


@given(st.integers(1, 20), st.integers(1, 25), st.integers(0, 3))
def test_passes_are_permutations_cut_into_whole_batches(samples, batch_size, seed):
    batch_size = min(batch_size, samples)
    generator = torch.Generator().manual_seed(seed)
    batches = ShuffledBatches(samples, batch_size, seed)
    for _ in range(3):
        order = torch.randperm(samples, generator=generator)
        for expected in order[: samples // batch_size * batch_size].split(batch_size):
            assert torch.equal(next(batches), expected)
    larger = ShuffledBatches(samples, samples + 1, seed)
    assert sorted(next(larger).tolist()) == list(range(samples))


@given(st.integers(1, 20), st.integers(1, 25), st.integers(0, 40), st.integers(0, 40))
def test_any_iteration_can_be_resumed(samples, batch_size, first, second):
    batches = ShuffledBatches(samples, batch_size, 5)
    expected = [next(batches) for _ in range(42)]
    for iteration in (first, second):
        resumed = ShuffledBatches(samples, batch_size, 5, iteration=iteration)
        assert torch.equal(next(resumed), expected[iteration])
        assert torch.equal(next(resumed), expected[iteration + 1])
        batches.iteration = iteration  # also backwards
        assert torch.equal(next(batches), expected[iteration])


def test_state_is_a_position():
    batches = ShuffledBatches(10, 3, seed=1)
    for _ in range(7):
        next(batches)
    state = batches.state_dict()
    expected = next(batches)
    resumed = ShuffledBatches(10, 3, seed=1)
    resumed.load_state_dict(state)
    assert torch.equal(next(resumed), expected)
    for other in (ShuffledBatches(11, 3, seed=1), ShuffledBatches(10, 2, seed=1), ShuffledBatches(10, 3)):
        with pytest.raises(ValueError, match="resume with the saved value"):
            other.load_state_dict(state)


def test_every_sample_is_seen_once_per_pass():
    batches = ShuffledBatches(12, 4)
    for _ in range(3):
        assert sorted(torch.cat([next(batches) for _ in range(3)]).tolist()) == list(range(12))


@given(st.integers(1, 4), st.integers(1, 4))
def test_processes_share_the_same_batch(world_size, share):
    whole = ShuffledBatches(50, world_size * share)
    parts = [
        ShuffledBatches(50, world_size * share, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for _ in range(30):
        assert torch.equal(torch.cat([next(part) for part in parts]), next(whole))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"samples": 0}, "samples is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"world_size": 3}, "multiple of the number of processes"),
        ({"rank": 1}, "rank is 1 of 1 processes"),
        ({"rank": -1}, "rank is -1"),
        ({"iteration": -1}, "iteration is -1"),
    ],
)
def test_impossible_splits_are_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        ShuffledBatches(**{"samples": 10, "batch_size": 4, **options})
