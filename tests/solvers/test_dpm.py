"""DPM-Solver++ and DDIM against diffusers and the untrained learned solver."""

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EDMEulerScheduler
from multistep_tools import BETAS, SCHEDULE, configured, network, noise, solve

from gas_ext import GeneralizedSolver, NoiseSchedule
from gas_ext.solvers import DPMSolver

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")


@pytest.mark.parametrize("lower_order_final", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_diffusers(order, lower_order_final):
    """Its updates, called one by one, as its step() rounds the states to float32."""
    steps = 8
    scheduler = DPMSolverMultistepScheduler(
        trained_betas=BETAS.numpy(), solver_order=order, final_sigmas_type="sigma_min"
    )
    times = configured(scheduler, steps)
    updates = [
        lambda outputs, sample: scheduler.dpm_solver_first_order_update(outputs[-1], sample=sample),
        scheduler.multistep_dpm_solver_second_order_update,
        scheduler.multistep_dpm_solver_third_order_update,
    ]
    x = expected = noise(2, 3, 4)
    outputs = []
    for n in range(steps):
        scheduler._step_index = n
        outputs.append(scheduler.convert_model_output(network(expected, times[n]), sample=expected))
        used = min(n + 1, order, steps - n if lower_order_final else order)
        expected = updates[used - 1](outputs, sample=expected)
    solver = DPMSolver(SCHEDULE, steps, order, timesteps=times, lower_order_final=lower_order_final)
    assert (solve(solver, x) - expected).abs().max() <= 1e-9


def test_ddim_of_diffusers():
    steps = 8
    scheduler = DDIMScheduler(
        trained_betas=BETAS.numpy(), clip_sample=False, set_alpha_to_one=False, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(steps)
    scheduler.alphas_cumprod = torch.cumprod(1.0 - BETAS, 0)
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    times = torch.tensor([*(scheduler.timesteps + 1).tolist(), 1]).double() / 1000
    x = expected = noise(2, 3)
    for n, tau in enumerate(scheduler.timesteps):
        expected = scheduler.step(network(expected, times[n]), tau, expected).prev_sample
    solver = DPMSolver(SCHEDULE, steps, 1, timesteps=times)
    assert (solve(solver, x) - expected).abs().max() <= 1e-9


def test_euler_of_edm():
    """Order 1 on EDM's schedule and spacing is Euler's method in sigma; diffusers works in float32."""
    steps, schedule = 6, NoiseSchedule.edm(0.002, 80.0)
    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0)
    scheduler.set_timesteps(steps)
    x = noise(2, 3)
    start = expected = x * 80.0
    sigmas = [*scheduler.sigmas[:-1].double(), torch.tensor(0.002).double()]
    scheduler.sigmas[-1] = 0.002
    for n, tau in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(expected, tau)
        data = expected / (1.0 + sigmas[n] ** 2)
        expected = scheduler.step(data, tau, expected, pred_original_sample=data).prev_sample
    inner = [(s ** (1 / 7) - 0.002 ** (1 / 7)) / (80.0 ** (1 / 7) - 0.002 ** (1 / 7)) for s in sigmas[1:-1]]
    solver = DPMSolver(schedule, steps, 1, timesteps=[1.0, *map(float, inner), 0.0])

    def predict(state, t, condition):
        return state / (1.0 + schedule.sigma(t) ** 2)

    found = solve(solver, x, predict, "sample")
    assert torch.equal(start, x * schedule.init_noise_sigma)
    assert (found - expected).abs().max() <= 2e-5


@pytest.mark.parametrize("schedule", [SCHEDULE, NoiseSchedule.flow()])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_untrained_learned_solver(order, schedule):
    learned = GeneralizedSolver(schedule, 5, order, theory_order=order, timesteps="quadratic")
    solver = DPMSolver(schedule, 5, order, timesteps="quadratic")
    for found, expected in zip(solver.weights(), learned.weights(), strict=True):
        assert torch.allclose(found, expected[:, : found.shape[1]], atol=1e-11)


@pytest.mark.parametrize("steps", [1, 2])
def test_fewer_steps_than_the_order(steps):
    solver = DPMSolver(SCHEDULE, steps, 3)
    assert len(solver.coefficients("sample").rows) == steps
