"""Coefficients: exactness, limits, gradients, and the conversion of network outputs."""

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_networks import randomize
from scipy.integrate import quad
from test_schedules import SCHEDULES

from gas_ext import GeneralizedSolver, NoiseSchedule
from gas_ext.solvers.coefficients import (
    PREDICTION_TYPES,
    _phi_tails,
    data_prediction_coefficients,
    data_scale,
    free_weights,
    fused_rows,
    guided_weights,
    reference_s4s_weights,
)
from gas_ext.solvers.timesteps import spaced_timesteps

ORDERS = [1, 2, 3]


@pytest.fixture(params=SCHEDULES, name="schedule")
def _schedule(request) -> NoiseSchedule:
    return SCHEDULES[request.param]


def theory(schedule: NoiseSchedule, times: torch.Tensor, order: int, theory_order: int = 3):
    zeros = torch.zeros(order, len(times) - 1, dtype=torch.float64)
    return guided_weights(schedule, times, zeros, zeros, theory_order)


@given(st.one_of(st.floats(1e-14, 1e-2), st.floats(1e-2, 60.0)))
def test_phi_tails_against_fifty_digits(h):
    with mpmath.workdps(60):
        p2 = mpmath.expm1(-mpmath.mpf(h)) / h + 1
        p3 = p2 / h - mpmath.mpf(1) / 2
        found = _phi_tails(torch.tensor([h], dtype=torch.float64))
        assert abs(found[0].item() / p2 - 1) < 1e-13
        assert abs(found[1].item() / p3 - 1) < 1e-11


@pytest.mark.parametrize("theory_order", ORDERS)
def test_constant_data_is_solved_exactly(schedule, theory_order):
    """Weights of D add up to alpha_{n+1} (1 - exp(-h)) whatever the order."""
    times = spaced_timesteps(schedule, 7, 1e-3, "uniform")
    weights = theory(schedule, times, 7, theory_order)
    torch.testing.assert_close(weights.data.sum(1), data_scale(schedule, times), rtol=1e-10, atol=1e-12)
    sigma = schedule.sigma(times)
    assert torch.equal(weights.state[:, 0], sigma[1:] / sigma[:-1])
    assert bool((weights.state[:, 1:] == 0).all())


def test_third_order_is_exact_for_data_linear_in_lambda():
    """x_{n+1} = sigma_{n+1} (x_n / sigma_n + integral of exp(lambda) D) by numerical quadrature."""
    schedule = SCHEDULES["vp_linear"]
    times = spaced_timesteps(schedule, 6, 1e-3, "logsnr")
    lam, sigma = schedule.lambda_(times), schedule.sigma(times)
    weights = theory(schedule, times, 3)
    for n in range(2, 6):
        data = torch.stack([0.3 + 0.7 * lam[n - j] for j in range(3)])
        integral, _ = quad(lambda x: math.exp(x) * (0.3 + 0.7 * x), lam[n].item(), lam[n + 1].item())
        assert (weights.data[n] @ data).item() == pytest.approx(sigma[n + 1].item() * integral, rel=1e-9)


@pytest.mark.parametrize("theory_order", [1, 2])
def test_corrections_beyond_the_theory_act_on_data(theory_order):
    """Corrections beyond the terms of the theory are added to the weights of D unchanged."""
    schedule, steps = SCHEDULES["vp_linear"], 5
    times = spaced_timesteps(schedule, steps, 1e-3, "quadratic")
    c = torch.randn(steps, steps, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a = torch.zeros_like(c)
    found = guided_weights(schedule, times, c, a, theory_order).data
    lam, alpha = schedule.lambda_(times), schedule.alpha(times)
    for n in range(steps):
        h = lam[n + 1] - lam[n]
        p1 = torch.expm1(-h)
        expected = torch.zeros(steps, dtype=torch.float64)
        expected[0] = -(alpha[n + 1] * p1 + c[0, n])
        first_raw = 1
        if n >= 1 and theory_order == 2:
            on_difference = -(0.5 * alpha[n + 1] * p1 + c[1, n]) * h / (lam[n] - lam[n - 1])
            expected[0] += on_difference
            expected[1] -= on_difference
            first_raw = 2
        expected[first_raw : n + 1] += c[first_raw : n + 1, n]
        torch.testing.assert_close(found[n], expected, rtol=1e-13, atol=1e-13)


def test_corrections_of_steps_that_lack_history_do_nothing():
    schedule = SCHEDULES["vp_linear"]
    times = spaced_timesteps(schedule, 4, 1e-3, "uniform")
    inactive = torch.tensor([[float(back > step) for step in range(4)] for back in range(4)])
    for build in (guided_weights, free_weights, reference_s4s_weights):
        zero, wild = (build(schedule, times, size * inactive, size * inactive) for size in (0.0, 1e9))
        assert torch.equal(zero.data, wild.data)
        assert torch.equal(zero.state, wild.state)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_exact_outputs_give_the_data(schedule, prediction_type):
    if prediction_type == "epsilon" and schedule.zero_terminal_snr:
        with pytest.raises(ValueError, match="says nothing about the data"):
            data_prediction_coefficients(schedule, torch.ones(1), torch.ones(1), prediction_type)
        return
    t = torch.tensor([1.0, 0.7, 0.2, 0.01], dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x_0, eps = 0.8, -1.3
    x = alpha * x_0 + sigma * eps
    output = {
        "epsilon": eps + 0 * x,
        "sample": x_0 + 0 * x,
        "v_prediction": (alpha * eps - sigma * x_0) / torch.hypot(alpha, sigma),
        "flow_prediction": eps - x_0 + 0 * x,
    }[prediction_type]
    p, q = data_prediction_coefficients(schedule, t, t, prediction_type)
    torch.testing.assert_close(p * x + q * output, x_0 + 0 * x, rtol=1e-11, atol=1e-11)


def test_sample_prediction_at_a_shifted_time_goes_through_the_noise():
    schedule = SCHEDULES["vp_linear"]
    t, seen = torch.tensor([0.8], dtype=torch.float64), torch.tensor([0.75], dtype=torch.float64)
    x, m = 0.4, 1.7
    eps = (x - schedule.alpha(seen) * m) / schedule.sigma(seen)
    p, q = data_prediction_coefficients(schedule, t, seen, "sample")
    expected = (x - schedule.sigma(t) * eps) / schedule.alpha(t)
    torch.testing.assert_close(p * x + q * m, expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("name", ["flow", "vp_zero_terminal"])
@pytest.mark.parametrize("theory_order", ORDERS)
def test_zero_terminal_snr_is_the_limit(name, theory_order):
    """Weights of nearby starts converge to those at lambda_0 = -inf, but only logarithmically."""
    schedule = SCHEDULES[name]
    times = spaced_timesteps(schedule, 5, 1e-3, "uniform")
    at_limit = theory(schedule, times, 5, theory_order).data
    distances = []
    for gap in (1e-6, 1e-12):
        near = torch.cat([times[:1] - gap, times[1:]])
        distances.append((theory(schedule, near, 5, theory_order).data - at_limit).abs().max().item())
    assert bool(torch.isfinite(at_limit).all())
    assert distances[1] < 0.7 * distances[0] + 1e-9
    # First step from pure noise: alpha' - sigma' alpha / sigma = alpha'.
    assert at_limit[0, 0] == schedule.alpha(times[1])


def test_rows_are_laid_out_for_the_fused_update():
    schedule = SCHEDULES["vp_linear"]
    times = spaced_timesteps(schedule, 4, 1e-3, "uniform")
    c = torch.arange(12, dtype=torch.float64).reshape(3, 4)
    weights = guided_weights(schedule, times, c, c)
    p, q = torch.rand(2, 4, dtype=torch.float64)
    rows = fused_rows(p, q, weights, 2.0)
    assert [len(row) for row in rows] == [6, 8, 10, 10]
    for n, row in enumerate(rows):
        active = min(n + 1, 3)
        assert row[:5].tolist() == [p[n], q[n], 2.0, 1.0, weights.data[n, 0]]
        assert torch.equal(row[5 : 5 + active], weights.state[n, :active])
        assert torch.equal(row[5 + active :], weights.data[n, 1:active])


@pytest.mark.slow
@pytest.mark.parametrize("theory_guidance", [True, False])
@pytest.mark.parametrize("order", [1, 2, 4])
def test_gradients_of_all_coefficients(schedule, theory_guidance, order):
    times = [1, 0.713, 0.4217, 0.1391, 2e-3]
    solver = GeneralizedSolver(schedule, 4, order, 2e-3, theory_guidance, timesteps=times)
    randomize(solver, 1, 0.01)
    with torch.no_grad():  # inside the domain: a cut at t = 1 has no two-sided derivative
        solver.time_offsets.copy_(-solver.time_offsets.abs())
    names = [f"solver.{name}" for name, _ in solver.named_parameters()]
    module = Table(solver)

    def table(*values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), ())

    values = tuple(parameter.detach().clone().requires_grad_() for parameter in solver.parameters())
    assert torch.autograd.gradcheck(table, values, eps=1e-7, atol=1e-5, rtol=1e-4)


class Table(torch.nn.Module):
    """All rows of a solver as one vector."""

    def __init__(self, solver: GeneralizedSolver) -> None:
        super().__init__()
        self.solver = solver

    def forward(self) -> torch.Tensor:
        table = self.solver.coefficients("sample")
        return torch.cat([*table.rows, table.timesteps, table.evaluation_timesteps])


ANY = st.floats(-1e6, 1e6)


@pytest.mark.slow
@given(st.data(), st.sampled_from(sorted(SCHEDULES)), st.integers(1, 7), st.booleans())
@settings(max_examples=150)
def test_any_parameters_give_finite_coefficients_and_gradients(data, name, steps, theory_guidance):
    schedule = SCHEDULES[name]
    order = data.draw(st.integers(1, steps))
    solver = GeneralizedSolver(schedule, steps, order, 1e-3, theory_guidance)
    for parameter in solver.parameters():
        values = data.draw(st.lists(ANY, min_size=parameter.numel(), max_size=parameter.numel()))
        parameter.data = torch.tensor(values, dtype=torch.float64).reshape(parameter.shape)
    prediction_type = data.draw(st.sampled_from([name for name in PREDICTION_TYPES if name != "epsilon"]))
    table = solver.coefficients(prediction_type)
    seen = table.evaluation_timesteps
    assert bool((table.timesteps.diff() < 0).all())
    assert bool(((seen > schedule.t_min) & (seen <= schedule.t_max)).all())
    flat = torch.cat([*table.rows, seen])
    assert bool(torch.isfinite(flat).all())
    flat.sum().backward()
    for parameter in solver.parameters():
        assert parameter.grad is None or bool(torch.isfinite(parameter.grad).all())
