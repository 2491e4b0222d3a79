"""The stand-in headers: conversions of the 16-bit types, and the order of blocks and threads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.native


def hard_floats() -> np.ndarray:
    """Floats around every value that a 16-bit type holds or rounds at, and random bit patterns."""
    halves = np.arange(1 << 16, dtype=np.uint16)
    with np.errstate(invalid="ignore"):
        values = [
            halves.view(np.float16).astype(np.float32),
            (halves.astype(np.uint32) << 16).view(np.float32),
        ]
    random = np.random.default_rng(0).integers(0, 1 << 32, 200_000, dtype=np.uint32).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        middles = [(v[:-1] / 2 + v[1:] / 2).astype(np.float32) for v in map(np.sort, values)]
        near = [np.nextafter(m, np.float32(s) * np.inf) for m in middles for s in (-1, 1)]
    floats = np.concatenate([*values, *middles, *near, random]).astype(np.float32)
    return floats[~np.isnan(floats)]


def test_half_to_float_is_exact(kernels) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    np.testing.assert_array_equal(kernels.half_to_float(bits), bits.view(np.float16).astype(np.float32))


def test_bfloat16_to_float_is_exact(kernels) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    expected = torch.from_numpy(bits).view(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(kernels.bfloat16_to_float(bits), expected)


def test_float_to_half_rounds_to_nearest_even(kernels) -> None:
    floats = hard_floats()
    with np.errstate(over="ignore"):
        expected = floats.astype(np.float16).view(np.uint16)
    np.testing.assert_array_equal(kernels.float_to_half(floats), expected)


def test_float_to_bfloat16_rounds_to_nearest_even(kernels) -> None:
    floats = hard_floats()
    expected = torch.from_numpy(floats).bfloat16().view(torch.uint16).numpy()
    np.testing.assert_array_equal(kernels.float_to_bfloat16(floats), expected)


def test_nan_stays_nan(kernels) -> None:
    nan = np.array([np.nan, -np.nan], dtype=np.float32)
    assert np.isnan(kernels.half_to_float(kernels.float_to_half(nan))).all()
    assert np.isnan(kernels.bfloat16_to_float(kernels.float_to_bfloat16(nan))).all()


def last_writers(kernels, order: int) -> bytes:
    """Return which thread of each pair wrote last in a kernel that races: a trace of the order."""
    kernels.set_order(order)
    values = np.arange(256, dtype=np.float32)
    return kernels.run_planted("race_in_global", True, values.view(np.uint8), 128).tobytes()


def test_the_seed_draws_the_order(kernels) -> None:
    assert last_writers(kernels, 5) == last_writers(kernels, 5)
    assert len({last_writers(kernels, order) for order in range(10)}) == 10
