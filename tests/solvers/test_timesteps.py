"""Spacings of timesteps, the GITS tables, and the stick-breaking form."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from multistep_tools import SCHEDULE
from test_schedules import SCHEDULES

from gas_ext import NoiseSchedule
from gas_ext.solvers import GITS_SIGMAS, IPNDMSolver, gits_timesteps
from gas_ext.solvers.timesteps import SPACINGS, inverse_stick_breaking, spaced_timesteps, stick_breaking

LOGITS = st.floats(allow_nan=False, width=64)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize("t_eps", [1e-3, 0.3, 0.5, 0.6, 0.95])
def test_ends_and_order(name, spacing, steps, t_eps):
    times = spaced_timesteps(SCHEDULES[name], steps, t_eps, spacing)
    assert times.shape == (steps + 1,)
    assert times.dtype == torch.float64
    assert (times[0], times[-1]) == (1.0, t_eps)
    assert bool((times.diff() < 0).all())


def test_definitions():
    """Each spacing is even in its own coordinate."""
    schedule = SCHEDULES["vp_linear"]
    coordinate = {
        "uniform": lambda t: t,
        "quadratic": torch.sqrt,
        "logsnr": schedule.lambda_,
        "edm": lambda t: torch.exp(-schedule.lambda_(t)) ** (1.0 / 7.0),
    }
    for spacing in SPACINGS:
        steps = coordinate[spacing](spaced_timesteps(schedule, 10, 1e-3, spacing)).diff()
        torch.testing.assert_close(steps, steps.mean().expand(10), rtol=1e-9, atol=0)


def test_edm_spacing_is_uniform_in_edm_time():
    schedule = NoiseSchedule.edm()
    uniform, edm = (spaced_timesteps(schedule, 18, 0.0, spacing) for spacing in ("uniform", "edm"))
    torch.testing.assert_close(uniform, edm, rtol=0, atol=1e-13)
    sigma = schedule.sigma(uniform)  # Karras et al. (2022), eq. 5
    ramp = torch.linspace(0, 1, 19, dtype=torch.float64)
    expected = (80.0 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80.0 ** (1 / 7))) ** 7
    torch.testing.assert_close(sigma, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("steps", sorted(GITS_SIGMAS))
def test_gits(steps):
    times = gits_timesteps(SCHEDULE, steps)
    assert torch.allclose(torch.exp(-SCHEDULE.lambda_(times)), torch.tensor(GITS_SIGMAS[steps]).double())
    assert torch.equal(IPNDMSolver(SCHEDULE, steps, 2, timesteps="gits").timesteps(), times)


@pytest.mark.parametrize(
    ("schedule", "steps", "message"),
    [
        (SCHEDULE, 9, "5, 6, 7 or 8"),
        (NoiseSchedule.vp_linear(), 5, r"from 152\.2\); use another spacing"),
        (NoiseSchedule.flow(), 5, r"from inf\); use another spacing"),
    ],
)
def test_gits_errors(schedule, steps, message):
    with pytest.raises(ValueError, match=message):
        gits_timesteps(schedule, steps)


@pytest.mark.slow
@example([math.inf] * 31, 1e-3)
@example([-math.inf] * 31, 1e-3)
@example([1e300] * 31, 1e-3)
@example([-1e300] * 31, 1e-3)
@given(st.lists(LOGITS, max_size=30), st.floats(0.0, 0.5))
@settings(max_examples=300)
def test_any_logits_give_strictly_decreasing_times(logits, t_eps):
    values = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    times = stick_breaking(values, t_eps)
    assert times.shape == (len(logits) + 2,) if logits else (2,)
    assert (times[0].item(), times[-1].item()) == (1.0, t_eps)
    assert bool((times.diff() < 0).all())
    if logits and all(math.isfinite(logit) for logit in logits):
        (gradient,) = torch.autograd.grad(times.square().sum(), values)
        assert bool(torch.isfinite(gradient).all())


@given(st.lists(st.floats(-6.0, 6.0), min_size=1, max_size=8))
def test_inverse_undoes_stick_breaking(logits):
    values = torch.tensor(logits, dtype=torch.float64)
    times = stick_breaking(values, 1e-3)
    torch.testing.assert_close(stick_breaking(inverse_stick_breaking(times), 1e-3), times, rtol=0, atol=1e-12)


def test_no_logits_is_one_step():
    assert stick_breaking(torch.zeros(0), 0.25).tolist() == [1.0, 0.25]
    assert inverse_stick_breaking(torch.tensor([1.0, 0.25])).shape == (0,)


def test_stick_breaking_gradient():
    logits = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: stick_breaking(x, 1e-3), (logits,))


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ([0.9, 0.5], "from 1"),
        ([1.0], "from 1"),
        ([1.0, 0.5, 0.5, 0.1], "strictly"),
        ([1.0, 0.5, math.nan], "strictly"),
        ([1.0, 0.5, 0.499999, 0.1], "closer"),
    ],
)
def test_inverse_refuses(times, words):
    with pytest.raises(ValueError, match=words):
        inverse_stick_breaking(torch.tensor(times, dtype=torch.float64))
