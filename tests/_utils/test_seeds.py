import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gas_ext._utils.noise import seed_labels
from gas_ext._utils.seeds import MOST_SEEDS, SeedList, common_seeds, format_seeds, parse_seeds

SEEDS = st.lists(st.integers(-3, 12), max_size=12)


@given(
    seeds=SEEDS, start=st.integers(-14, 14), stop=st.integers(-14, 14), step=st.sampled_from([1, 1, 2, -1])
)
def test_a_list_of_seeds_is_a_sequence(seeds, start, stop, step):
    found = SeedList.of(seeds)
    assert found == seeds
    assert list(found) == seeds
    assert list(found[start:stop:step]) == seeds[start:stop:step]
    assert [found[place] for place in range(len(seeds))] == seeds
    assert parse_seeds(format_seeds(found)) == seeds if seeds else not found


@given(SEEDS, SEEDS)
def test_seeds_in_common(ours, theirs):
    common = set(ours) & set(theirs)
    assert common_seeds(ours, theirs) == (len(common), min(common, default=None))


def test_a_range_of_seeds_takes_no_memory():
    tracemalloc.start()
    try:
        seeds = parse_seeds(f"0-{MOST_SEEDS - 1}")
        assert seeds[MOST_SEEDS // 2 :][5] == MOST_SEEDS // 2 + 5
        assert format_seeds(seeds) == f"0-{MOST_SEEDS - 1}"
        assert common_seeds(seeds, seeds) == (MOST_SEEDS, 0)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("text", ["0-99999998", "0-9999999,0", "9223372036854775808", "9" * 5000])
def test_more_or_larger_seeds_are_refused(text):
    with pytest.raises(ValueError, match="seed") as caught:
        parse_seeds(text)
    assert len(str(caught.value)) < 200


def test_labels_of_no_seeds():
    assert seed_labels([], 10).shape == (0,)
