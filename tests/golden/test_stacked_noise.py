"""The noise of a seed, against draws recorded from the reference generator."""

import pytest
import torch
from golden_data import arrays

from gas_ext._utils.noise import stacked_noise

GOLDEN = arrays("stacked_noise.npz")
SEEDS = GOLDEN["seeds"].tolist()


def test_first_and_second_draw():
    """One draw of twice the size gives the numbers of two draws."""
    found = stacked_noise(SEEDS, (2, 3, 8, 8))
    for i, name in enumerate(("first", "second")):
        assert torch.equal(found[:, i], torch.from_numpy(GOLDEN[name]))


@pytest.mark.parametrize(
    ("name", "seeds", "shape", "dtype"),
    [
        ("odd_3x5x7", SEEDS, (3, 5, 7), torch.float32),  # sizes that are not multiples of sixteen
        ("tiny_5", SEEDS, (5,), torch.float32),
        ("wrap_seeds_2p32plus3_and_minus1", [2**32 + 3, -1], (3, 8, 8), torch.float32),
        ("first2_float64", [0, 1], (3, 8, 8), torch.float64),
    ],
)
def test_one_draw(name, seeds, shape, dtype):
    assert torch.equal(stacked_noise(seeds, shape, dtype=dtype), torch.from_numpy(GOLDEN[name]))
