"""iPNDM against diffusers and exact integrals; see also golden/test_multistep_solves.py."""

import numpy as np
import pytest
import torch
from diffusers import IPNDMScheduler
from multistep_tools import SCHEDULE, network, noise, solve

from gas_ext import GASSampler
from gas_ext.solvers import IPNDMSolver
from gas_ext.solvers.ipndm import adams_bashforth


def test_diffusers():
    steps = 8
    solver = IPNDMSolver(SCHEDULE, steps, order=4, timesteps="logsnr")
    times = solver.timesteps()
    scheduler = IPNDMScheduler()
    scheduler.set_timesteps(steps)
    # diffusers has its own schedule alpha = cos, sigma = sin, in float32; the formulas are the same.
    scheduler.alphas, scheduler.betas = SCHEDULE.alpha(times), SCHEDULE.sigma(times)
    x = expected = noise(2, 5)
    for n, tau in enumerate(scheduler.timesteps):
        alpha, sigma = scheduler.alphas[n], scheduler.betas[n]
        eps = network(expected, times[n])
        velocity = (eps - sigma * expected) / alpha  # the scheduler computes eps = sigma x + alpha v
        expected = scheduler.step(velocity, tau, expected).prev_sample
    assert (solve(solver, x) - expected).abs().max() <= 1e-9


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_adams_weights_integrate_polynomials(order):
    weights = adams_bashforth(order)
    for degree in range(order):
        values = [float(-j) ** degree for j in range(order)]
        assert np.dot(weights, values) == pytest.approx(1.0 / (degree + 1), abs=1e-14)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_all_prediction_types_agree(prediction_type):
    def converted(x, t, condition):
        eps, alpha, sigma = network(x, t), SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        data = (x - sigma * eps) / alpha
        return {"epsilon": eps, "sample": data, "v_prediction": alpha * eps - sigma * data}[prediction_type]

    x = noise(2, 5)
    solver = IPNDMSolver(SCHEDULE, 6, order=3, timesteps="logsnr")
    expected, trajectory = GASSampler(solver, network, "epsilon")(x, return_trajectory=True)
    assert torch.allclose(solve(solver, x, converted, prediction_type), expected, atol=1e-10)
    first = network(x, trajectory.timesteps[0])
    assert torch.allclose(trajectory.data[0], first, atol=1e-12)  # the noise prediction is stored
