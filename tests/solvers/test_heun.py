"""Heun's method against the exact solution for Gaussian data; see also golden/test_heun_solves.py."""

import pytest
import torch
from diffusers import HeunDiscreteScheduler
from multistep_tools import SCHEDULE as DISCRETE
from multistep_tools import network, noise, solve

from gas_ext import Denoiser, GASSampler, NoiseSchedule
from gas_ext.solvers import HeunSolver

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

STD = 0.7
SCHEDULES = {
    "edm": NoiseSchedule.edm(0.002, 80.0),
    "vp": NoiseSchedule.vp_linear(),
}


def gaussian(schedule: NoiseSchedule) -> Denoiser:
    """Exact data prediction of N(0, STD^2) data."""

    def predict(x, t, condition):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return x * (alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)).to(x)

    return Denoiser.from_callable(predict, schedule=schedule, prediction_type="sample", sample_shape=(3,))


def exact(schedule: NoiseSchedule, noise: torch.Tensor) -> torch.Tensor:
    """The solution at sigma = 0: x / sqrt(alpha^2 STD^2 + sigma^2) stays what it is."""
    one = torch.tensor(1.0, dtype=torch.float64)
    spread = (schedule.alpha(one) ** 2 * STD**2 + schedule.sigma(one) ** 2).sqrt()
    return noise * STD / spread


@pytest.mark.parametrize("variable", ["sigma", "time"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_error_falls_with_the_square_of_the_steps(name, variable):
    schedule = SCHEDULES[name]
    denoiser = gaussian(schedule)
    start = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)[None] * schedule.init_noise_sigma
    errors = []
    for steps in (39, 79, 159):
        solver = HeunSolver(schedule, steps, 1e-4, "edm" if name == "vp" else "uniform", variable=variable)
        sampler = GASSampler(solver, denoiser)
        errors.append(
            (sampler(start / schedule.init_noise_sigma) - exact(schedule, start)).abs().max().item()
        )
        assert sampler.evaluations == steps
    assert errors[0] > 3.0 * errors[1] > 9.0 * errors[2]


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


@pytest.mark.parametrize("variable", ["sigma", "time"])
def test_heun_up_to_the_end(variable):
    """Two evaluations in the last step too, against the textbook."""
    schedule = SCHEDULES["vp"]
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

    expected = x
    for t, end in zip(solver._distinct_times[:-1], solver._places[1:], strict=True):
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


def test_times_states_and_description():
    solver = HeunSolver(SCHEDULES["vp"], 5, 0.1)
    assert solver.timesteps().tolist() == pytest.approx([1.0, 0.55, 0.55, 0.1, 0.1, 0.0])
    described = solver.describe()
    assert (described["kind"], described["steps"], described["variable"]) == ("HeunSolver", 5, "sigma")
    assert solver.t_eps == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: HeunSolver(SCHEDULES["vp"], 1, 0.1), "odd number of network evaluations, at least 3"),
        (lambda: HeunSolver(SCHEDULES["vp"], 6, 0.1, last="euler"), "steps is 6, .* odd"),
        (lambda: HeunSolver(SCHEDULES["vp"], 5, 0.1, last="heun"), "steps is 5, .* even"),
        (lambda: HeunSolver(SCHEDULES["vp"], 3), "t_eps is 0.0"),
        (lambda: HeunSolver(SCHEDULES["vp"], 3, 0.1, variable="lambda"), "'sigma' or 'time'"),
        (lambda: HeunSolver(SCHEDULES["vp"], 3, 0.1, last="none"), "'zero', 'euler' or 'heun'"),
        (lambda: HeunSolver(NoiseSchedule.flow(), 3, 0.1), "infinite"),
        (lambda: HeunSolver(SCHEDULES["vp"], 5, timesteps=[1.0, 0.2, 0.3], t_eps=0.1), "decreasing"),
    ],
)
def test_impossible_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
