import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gas_ext._utils.seeds import MOST_SEEDS, SeedList, common_seeds, format_seeds, parse_seeds

UNREADABLE = ["", "a", "3-", "1,,2", "1.5", "5-2"]
TOO_LARGE = ["0-99999999999", "0-99999998", "0-9999999,0", "9223372036854775808", "9" * 5000]
SEEDS = st.lists(st.integers(-3, 12), max_size=12)


@given(
    seeds=SEEDS, start=st.integers(-14, 14), stop=st.integers(-14, 14), step=st.sampled_from([1, 1, 2, -1])
)
def test_a_list_of_seeds_is_a_sequence(seeds, start, stop, step):
    found = SeedList.of(seeds)
    assert found == seeds
    assert list(found) == seeds
    assert list(found[start:stop:step]) == seeds[start:stop:step]
    assert [found[i] for i in range(len(seeds))] == seeds
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


@given(
    st.lists(st.tuples(st.integers(-(2**40), 2**40), st.integers(0, 5)), min_size=1, max_size=6),
    st.sampled_from([",", ", ", " , "]),
)
def test_integers_and_ranges_are_read_in_order(runs, comma):
    parts = [f"{first}-{first + extra}" if first >= 0 else f"{first}" for first, extra in runs]
    expected = [first + i for first, extra in runs for i in range(extra + 1 if first >= 0 else 1)]
    assert parse_seeds(comma.join(parts)) == expected


@pytest.mark.parametrize("text", [*UNREADABLE, *TOO_LARGE])
def test_anything_else_is_refused_in_a_short_sentence(text):
    with pytest.raises(ValueError, match=r"[Ss]eed.*\.$") as caught:
        parse_seeds(text)
    assert len(str(caught.value)) < 200
