"""A solve that is made step by step is the solve that the sampler makes."""

import pytest
import torch
from mixture import SCHEDULE, mixture_denoiser
from sampler_networks import VP, mixture, noise_of, randomize
from test_input_dtype import HALF, HalfNetwork

from gas_ext import GASSampler, GeneralizedSolver, NoiseSchedule
from gas_ext.solvers import HeunSolver, UniPCSolver
from gas_ext.training.warm_start import fit_corrections

SOLVERS = {
    "learned": lambda: randomize(GeneralizedSolver(VP, 5), 0, 0.02),
    "low order": lambda: randomize(GeneralizedSolver(VP, 5, order=2), 1, 0.02),
    "unipc": lambda: UniPCSolver(VP, 4),
    "heun": lambda: HeunSolver(VP, 5, 1e-3),
    "one step": lambda: GeneralizedSolver(VP, 1),
}


def whole(solve, sampler):
    table = sampler.coefficients()
    for _ in table.rows:
        solve.advance(table)
    return solve


@torch.no_grad()
@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_states_and_data_are_those_of_a_trajectory(name, dtype):
    sampler = GASSampler(SOLVERS[name](), mixture(VP, dtype))
    noise = noise_of(3, 2).to(dtype)
    solve = whole(sampler.begin(noise), sampler)
    _, trajectory = sampler(noise, return_trajectory=True)
    for found, expected in ((solve.states, trajectory.states), (solve.data, trajectory.data)):
        assert len(found) == len(expected)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@torch.no_grad()
def test_guided_and_scaled():
    schedule = NoiseSchedule.edm()
    assert schedule.init_noise_sigma != 1.0
    sampler = GASSampler(
        GeneralizedSolver(schedule, 3, timesteps="edm"),
        lambda x, t, condition: torch.tanh(x / 80) + condition[:, None],
        "sample",
        guidance_scale=2.0,
    )
    arguments = noise_of(4, 6).float(), torch.arange(4) / 4, torch.zeros(1)
    assert torch.equal(whole(sampler.begin(*arguments), sampler).states[-1], sampler(*arguments))


@torch.no_grad()
@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_networks_are_given_their_own(dtype):
    network = HalfNetwork(dtype, declares=True)
    sampler, noise = GASSampler(GeneralizedSolver(VP, 3), network), torch.randn(4, 6)
    solve = whole(sampler.begin(noise), sampler)
    assert set(network.seen) == {dtype}
    assert torch.equal(solve.states[-1], sampler(noise))


@torch.no_grad()
def test_the_network_is_called_once_a_step():
    calls = []

    def network(x, t, condition):
        calls.append(t.item())
        return torch.tanh(x)

    sampler = GASSampler(GeneralizedSolver(VP, 3), network)
    solve, table = sampler.begin(torch.randn(2, 3)), sampler.coefficients()
    first = solve.evaluate(table)
    assert solve.evaluate(table) is first
    whole(solve, sampler)
    assert calls == table.evaluation_timesteps.tolist()
    assert sampler.evaluations == 3


def test_impossible_noise_is_refused():
    sampler = GASSampler(GeneralizedSolver(VP, 3), lambda x, t, condition: x)
    with pytest.raises(TypeError, match="floating point"):
        sampler.begin(torch.ones(2, 3, dtype=torch.int64))


def test_fitting_evaluates_every_state_once():
    calls = []

    def network(x, t, condition):
        calls.append(1)
        return mixture_denoiser(x, t, condition)

    noise = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    fit_corrections(GeneralizedSolver(SCHEDULE, 5), network, noise, prediction_type="sample", substeps=3)
    assert len(calls) == 5 * (1 + 3)


def test_a_network_may_reuse_its_output():
    noise = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    memory = torch.empty(3, 4)

    def reusing(x, t, condition):
        return memory.copy_(mixture_denoiser(x, t, condition))

    fitted = []
    for network in (mixture_denoiser, reusing):
        solver = GeneralizedSolver(SCHEDULE, 3)
        fit_corrections(solver, network, noise, prediction_type="sample", batch_size=3)
        fitted.append(solver.data_corrections.detach().clone())
    assert torch.equal(*fitted)


def test_a_finished_solve_cannot_be_advanced():
    sampler = GASSampler(GeneralizedSolver(VP, 2), lambda x, t, condition: x)
    solve = whole(sampler.begin(torch.ones(1, 2)), sampler)
    with pytest.raises(ValueError, match="All 2 steps"):
        solve.advance(sampler.coefficients())
