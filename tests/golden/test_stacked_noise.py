"""The noise of a seed, against draws recorded from the reference generator."""

import pytest
import torch
from golden_data import arrays

from gas_ext._utils.noise import stacked_noise


@pytest.fixture(scope="module")
def golden():
    return arrays("stacked_noise.npz")


def test_first_and_second_draw(golden):
    """One draw of twice the size gives the numbers of two draws."""
    found = stacked_noise(golden["seeds"].tolist(), (2, 3, 8, 8))
    for i, name in enumerate(("first", "second")):
        assert torch.equal(found[:, i], torch.from_numpy(golden[name]))


@pytest.mark.parametrize(("name", "shape"), [("odd_3x5x7", (3, 5, 7)), ("tiny_5", (5,))])
def test_sizes_that_are_no_multiple_of_sixteen(golden, name, shape):
    assert torch.equal(stacked_noise(golden["seeds"].tolist(), shape), torch.from_numpy(golden[name]))


def test_seeds_wrap_at_32_bits(golden):
    expected = torch.from_numpy(golden["wrap_seeds_2p32plus3_and_minus1"])
    assert torch.equal(stacked_noise([2**32 + 3, -1], (3, 8, 8)), expected)


def test_float64_draw(golden):
    expected = torch.from_numpy(golden["first2_float64"])
    assert torch.equal(stacked_noise([0, 1], (3, 8, 8), dtype=torch.float64), expected)
