"""The warning of noise that is not finite: once, and never where reading it would stall or fail."""

import warnings

import pytest
import torch
from torch.func import vmap

from gas_ext import GASSampler, GeneralizedSolver, NoiseSchedule
from gas_ext.denoisers import _warn_of_noise

SAMPLER = GASSampler(GeneralizedSolver(NoiseSchedule.flow(), 2), lambda x, t, condition: x, "sample")
X = torch.ones(2, 3)


@pytest.fixture(autouse=True)
def _as_at_first():
    _warn_of_noise.cache_clear()


def warnings_of(solve, noise) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        solve(noise)
        solve(noise)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("solve", [SAMPLER, SAMPLER.begin])
def test_noise_that_is_not_finite_is_warned_of_once(solve, dtype, value):
    noise = X.to(dtype).clone()
    noise[1, 2] = value
    assert warnings_of(solve, noise) == [
        "The noise holds NaN or infinite numbers, and so will the samples; draw it with torch.randn."
    ]


@pytest.mark.parametrize("noise", [X, 3e38 * X, (6e4 * X).half(), X[:0]])
def test_finite_noise_is_not_warned_of_though_its_sum_overflows(noise):
    assert warnings_of(SAMPLER, noise) == []


@pytest.mark.slow
def test_noise_that_cannot_be_read_is_not_warned_of():
    assert warnings_of(vmap(SAMPLER), torch.nan * X[None]) == []
    assert warnings_of(torch.compile(SAMPLER, backend="eager", fullgraph=True), torch.nan * X) == []
    meta = GASSampler(GeneralizedSolver(NoiseSchedule.flow(), 2).to("meta"), lambda x, t, c: x, "sample")
    assert warnings_of(meta, X.to("meta")) == []
