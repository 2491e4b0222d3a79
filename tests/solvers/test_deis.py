"""DEIS: its integrals against SciPy's, and the log-rho form against diffusers."""

import math

import numpy as np
import pytest
import torch
from diffusers import DEISMultistepScheduler
from multistep_tools import BETAS, SCHEDULE, configured, noise, scheduled, solve
from scipy.integrate import quad

from gas_ext import NoiseSchedule
from gas_ext.solvers import DEISSolver, DPMSolver

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

SCHEDULES = {"vp": (NoiseSchedule.vp_linear(), 1e-4), "edm": (NoiseSchedule.edm(0.002, 80.0), 1e-3)}


def lagrange(past, j, t):
    others = [node for i, node in enumerate(past) if i != j]
    return math.prod((t - node) / (past[j] - node) for node in others)


def slope(schedule, t):
    """d(sigma / alpha) / dt by automatic differentiation."""
    t = torch.as_tensor(t, dtype=torch.float64).clone().requires_grad_()
    return torch.autograd.grad(torch.exp(-schedule.lambda_(t)).sum(), t)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_weights_are_the_paper_s_integrals(name, order):
    """alpha' int L_j(t) (dk/dt) dt over time itself, k = sigma / alpha, by SciPy's adaptive quadrature."""
    schedule, t_eps = SCHEDULES[name]
    solver = DEISSolver(schedule, 5, order, t_eps)
    times, data = solver.timesteps().tolist(), solver.weights().data
    for n in (0, 2, 4):
        past = times[max(n - order, 0) : n + 1][::-1]
        for j in range(len(past)):
            integral, _ = quad(
                lambda t, j=j, past=past: lagrange(past, j, t) * slope(schedule, t).item(),
                times[n],
                times[n + 1],
                epsabs=0.0,
                epsrel=1e-12,
                limit=400,
            )
            expected = schedule.alpha(times[n + 1]).item() * integral
            assert data[n, j].item() == pytest.approx(expected, rel=1e-9)


def test_integrals_over_a_schedule_with_knots():
    """The same by Gauss-Legendre over time, on each piece between two of the 1000 knots."""
    solver = DEISSolver(SCHEDULE, 5, 3)
    times, data = solver.timesteps(), solver.weights().data
    knots, _ = SCHEDULE.knots(times.device)
    nodes, weights = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(40))
    for n in range(5):
        inside = knots[(knots < times[n]) & (knots > times[n + 1])].flip(0)
        edges = torch.cat([times[n : n + 1], inside, times[n + 1 : n + 2]])
        half = 0.5 * edges.diff()[:, None]
        t = edges[:-1, None] + half * (1.0 + nodes)
        past = times[max(n - 3, 0) : n + 1].flip(0).tolist()
        for j in range(len(past)):
            integral = (half * weights * lagrange(past, j, t) * slope(SCHEDULE, t)).sum()
            expected = SCHEDULE.alpha(times[n + 1]) * integral
            assert data[n, j].item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_log_rho_form_is_that_of_diffusers(order):
    """diffusers counts evaluations, so its solver_order is ours + 1, and its polynomials are in log rho."""
    steps = 8
    scheduler = DEISMultistepScheduler(
        trained_betas=BETAS.numpy(), solver_order=order, lower_order_final=False
    )
    times = configured(scheduler, steps)
    x = noise(2, 3, 4)
    solver = DEISSolver(SCHEDULE, steps, order - 1, timesteps=times, variable="lambda")
    expected = scheduled(scheduler, times, x)
    assert (solve(solver, x) - expected).abs().max() <= 1e-9
    if order > 1:
        in_time = DEISSolver(SCHEDULE, steps, order - 1, timesteps=times)
        assert (solve(in_time, x) - expected).abs().max() > 1e-4


def test_order_zero_is_ddim():
    x = noise(3, 4)
    times = dict(steps=6, timesteps="quadratic")
    found = solve(DEISSolver(SCHEDULE, order=0, **times), x)
    expected = solve(DPMSolver(SCHEDULE, order=1, **times), x)
    assert (found - expected).abs().max() <= 1e-12
