"""Heun's method against diffusers and the textbook; see also golden/test_heun_solves.py."""

import pytest
import torch
from diffusers import HeunDiscreteScheduler
from multistep_tools import SCHEDULE as DISCRETE
from multistep_tools import network, noise, solve

from gas_ext import NoiseSchedule
from gas_ext.solvers import HeunSolver

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

SCHEDULES = {"edm": NoiseSchedule.edm(0.002, 80.0), "vp": NoiseSchedule.vp_linear()}


@pytest.mark.parametrize("last", ["zero", "euler"])
def test_heun_of_diffusers(last):
    """diffusers works with x / alpha and repeats the noise levels between first and last."""
    steps = 5
    solver = HeunSolver(DISCRETE, 2 * steps - 1, 1e-3, "edm", last=last)
    times = solver._distinct_times
    levels = torch.exp(-DISCRETE.lambda_(times))
    if last == "zero":
        levels = torch.cat([levels, levels.new_zeros(1)])
    scheduler = HeunDiscreteScheduler()
    scheduler.set_timesteps(steps)
    scheduler.sigmas = torch.cat([levels[:1], levels[1:-1].repeat_interleave(2), levels[-1:]])
    seen = solver.timesteps()[:-1]
    assert len(seen) == 2 * steps - 1
    x = noise(2, 3)
    scaled = x / DISCRETE.alpha(times[0])
    scheduler._step_index = 0
    for n in range(2 * steps - 1):
        output = network(scaled * DISCRETE.alpha(seen[n]), seen[n])
        scaled = scheduler.step(output, n, scaled).prev_sample
    end = 1.0 if last == "zero" else DISCRETE.alpha(times[-1])
    assert (solve(solver, x) - scaled * end).abs().max() <= 1e-9


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("variable", ["sigma", "time"])
def test_heun_up_to_the_end(variable, name):
    """Two evaluations in the last step too, against the textbook."""
    schedule = SCHEDULES[name]
    solver = HeunSolver(schedule, 6, 1e-2, "quadratic", variable=variable, last="heun")
    x = noise(2, 3)

    def slope(state, t):
        t = t.clone().requires_grad_()
        alpha, sigma, lam = schedule.alpha(t), schedule.sigma(t), schedule.lambda_(t)
        eps = network(state, t.detach())
        if variable == "sigma":
            return eps
        (rate,) = torch.autograd.grad(torch.log(sigma), t, retain_graph=True)
        (speed,) = torch.autograd.grad(lam, t)
        data = (state - sigma * eps) / alpha
        return (rate * state + alpha * speed * data).detach()

    expected = x * schedule.init_noise_sigma
    for t, end in zip(solver._distinct_times[:-1], solver._distinct_times[1:], strict=True):
        if variable == "sigma":
            u, v = torch.exp(-schedule.lambda_(t)), torch.exp(-schedule.lambda_(end))
            now, then = schedule.alpha(t), schedule.alpha(end)
        else:
            u, v, now, then = t, end, 1.0, 1.0
        first = slope(expected, t)
        euler = (expected / now + (v - u) * first) * then
        expected = (expected / now + (v - u) * 0.5 * (first + slope(euler, end))) * then
    assert (solve(solver, x) - expected).abs().max() <= 1e-10
    assert solver.timesteps().tolist() == sorted(solver.timesteps().tolist(), reverse=True)
    assert (solver.steps, solver.t_eps) == (6, pytest.approx(1e-2))


def test_timesteps_are_those_of_the_evaluations():
    solver = HeunSolver(SCHEDULES["vp"], 5, 0.1)
    assert solver.timesteps().tolist() == pytest.approx([1.0, 0.55, 0.55, 0.1, 0.1, 0.0])
    assert solver.t_eps == pytest.approx(0.1)
