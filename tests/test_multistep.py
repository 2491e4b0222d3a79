"""UniPC and iPNDM: against diffusers, against exact integrals, and in the sampler."""

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler

from gas_ext import GASSampler, NoiseSchedule
from gas_ext.multistep import GITS_SIGMAS, IPNDMSolver, UniPCSolver, adams_bashforth, gits_timesteps

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
SCHEDULE = NoiseSchedule.vp_discrete(torch.cumprod(1.0 - BETAS, 0))


def network(x, t, condition=None):
    """Some smooth "epsilon" network."""
    return torch.tanh(x + t) + 0.3 * x


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_equals_diffusers(variant, order):
    steps = 8
    scheduler = UniPCMultistepScheduler(
        trained_betas=BETAS.numpy(),
        solver_order=order,
        solver_type=variant,
        final_sigmas_type="sigma_min",
    )
    scheduler.set_timesteps(steps)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    places = [*scheduler.timesteps.tolist(), 0]  # whole times tau; t = (tau + 1) / 1000
    times = torch.tensor([(tau + 1) / 1000 for tau in places], dtype=torch.float64)
    sigmas = torch.exp(-SCHEDULE.lambda_(times))
    scheduler.sigmas = sigmas  # in float64, where diffusers keeps float32
    expected = x
    for n, tau in enumerate(scheduler.timesteps):
        expected = scheduler.step(network(expected, times[n]), tau, expected).prev_sample
    solver = UniPCSolver(SCHEDULE, steps, order, timesteps=times, variant=variant)
    found = GASSampler(solver, network, "epsilon")(x)
    assert (found - expected).abs().max() <= 1e-9


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_adams_weights_integrate_polynomials(order):
    weights = adams_bashforth(order)
    for degree in range(order):
        values = [float(-j) ** degree for j in range(order)]
        assert np.dot(weights, values) == pytest.approx(1.0 / (degree + 1), abs=1e-14)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_ipndm_does_not_depend_on_what_the_network_predicts(prediction_type):
    def as_asked(x, t, condition):
        eps, alpha, sigma = network(x, t), SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        data = (x - sigma * eps) / alpha
        return {"epsilon": eps, "sample": data, "v_prediction": alpha * eps - sigma * data}[prediction_type]

    noise = torch.randn(2, 5, dtype=torch.float64)
    solver = IPNDMSolver(SCHEDULE, 6, order=3, timesteps="logsnr")
    expected, trajectory = GASSampler(solver, network, "epsilon")(noise, return_trajectory=True)
    assert torch.allclose(GASSampler(solver, as_asked, prediction_type)(noise), expected, atol=1e-10)
    first = network(noise, trajectory.timesteps[0])
    assert torch.allclose(trajectory.data[0], first, atol=1e-12)  # the predicted noise is what is kept


@pytest.mark.parametrize("kind", [UniPCSolver, IPNDMSolver])
def test_more_steps_come_closer(kind):
    noise = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def solve(steps):
        return GASSampler(kind(SCHEDULE, steps, 3, timesteps="logsnr"), network, "epsilon")(noise)

    exact = solve(400)
    errors = [(solve(steps) - exact).abs().max().item() for steps in (10, 20, 40)]
    assert errors[0] > 2.0 * errors[1] > 4.0 * errors[2]


@pytest.mark.parametrize("steps", sorted(GITS_SIGMAS))
def test_gits_times(steps):
    times = gits_timesteps(SCHEDULE, steps)
    assert times.shape == (steps + 1,)
    assert torch.allclose(torch.exp(-SCHEDULE.lambda_(times)), torch.tensor(GITS_SIGMAS[steps]).double())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: UniPCSolver(SCHEDULE, 4, 5), "orders 1 to 4"),
        (lambda: IPNDMSolver(SCHEDULE, 4, 0), "orders 1 to 4"),
        (lambda: UniPCSolver(SCHEDULE, 4, variant="bh3"), "bh1"),
        (lambda: UniPCSolver(NoiseSchedule.flow(), 4), "infinite"),
        (lambda: UniPCSolver(SCHEDULE, 2, 2, timesteps=[1.0, 0.2, 0.3]), "decreasing"),
        (lambda: gits_timesteps(SCHEDULE, 9), "5, 6, 7 or 8"),
        (lambda: UniPCSolver(SCHEDULE, 4).coefficients(), "prediction_type"),
    ],
)
def test_impossible_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
