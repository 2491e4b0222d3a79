"""Heun's method against the exact solution for Gaussian data; see also golden/test_heun_solves.py."""

import pytest
import torch

from gas_ext import Denoiser, GASSampler, NoiseSchedule
from gas_ext.heun import HeunSolver

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
    for steps in (20, 40, 80):
        solver = HeunSolver(schedule, steps, 1e-4, "edm" if name == "vp" else "uniform", variable=variable)
        sampler = GASSampler(solver, denoiser)
        errors.append(
            (sampler(start / schedule.init_noise_sigma) - exact(schedule, start)).abs().max().item()
        )
        assert sampler.evaluations == 2 * steps - 1
    assert errors[0] > 3.0 * errors[1] > 9.0 * errors[2]


def test_times_states_and_description():
    solver = HeunSolver(SCHEDULES["vp"], 3, 0.1)
    assert solver.timesteps().tolist() == pytest.approx([1.0, 0.55, 0.55, 0.1, 0.1, 0.0])
    described = solver.describe()
    assert (described["kind"], described["steps"], described["variable"]) == ("HeunSolver", 5, "sigma")
    assert solver.t_eps == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: HeunSolver(SCHEDULES["vp"], 1, 0.1), "at least 2 times"),
        (lambda: HeunSolver(SCHEDULES["vp"], 3), "t_eps is 0.0"),
        (lambda: HeunSolver(SCHEDULES["vp"], 3, 0.1, variable="lambda"), "'sigma' or 'time'"),
        (lambda: HeunSolver(NoiseSchedule.flow(), 3, 0.1), "infinite"),
        (lambda: HeunSolver(SCHEDULES["vp"], 3, timesteps=[1.0, 0.2, 0.3], t_eps=0.1), "decreasing"),
    ],
)
def test_impossible_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
