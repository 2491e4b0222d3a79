import pytest
import torch
from multistep_tools import SCHEDULE

from gas_ext import GASSampler, NoiseSchedule
from gas_ext.solvers import DEISSolver, DPMSolver, HeunSolver, IPNDMSolver, UniPCSolver

ORDER = {IPNDMSolver: {"order": 2}}  # the others have a usual one
ALL = [DEISSolver, DPMSolver, HeunSolver, IPNDMSolver, UniPCSolver]


@pytest.mark.parametrize("kind", ALL)
def test_times_of_one_s_own(kind):
    times = [1.0, 0.7, 0.3, 0.02]
    options = {"last": "heun"} if kind is HeunSolver else ORDER.get(kind, {})
    solver = kind(SCHEDULE, 6 if kind is HeunSolver else 3, timesteps=times, **options)
    assert sorted(set(solver.timesteps().tolist()), reverse=True) == times
    assert solver.t_eps == 0.02
    assert set(solver.describe()) >= {"kind", "steps", "timesteps"}


@pytest.mark.parametrize("kind", ALL)
def test_weights_made_without_gradients_serve_where_there_are_some(kind):
    options = {"last": "heun"} if kind is HeunSolver else ORDER.get(kind, {})
    solver = kind(SCHEDULE, 4, t_eps=1e-2, timesteps="quadratic", **options)
    sampler = GASSampler(solver, lambda x, t, c: torch.tanh(x), "sample")
    x = torch.ones(1, 2, dtype=torch.float64)
    with torch.inference_mode():
        expected = sampler(x).clone()
    x.requires_grad_()
    found = sampler(x)
    found.sum().backward()
    assert torch.equal(found, expected)
    assert x.grad.abs().min() > 0
    assert solver._weights is not None
    assert sampler(x.detach()).equal(found)


@pytest.mark.parametrize("kind", [DEISSolver, HeunSolver, IPNDMSolver, UniPCSolver])
def test_what_steps_in_lambda_needs_it_finite(kind):
    with pytest.raises(ValueError, match=r"infinite at t = 1 .* use DPM-Solver"):
        kind(NoiseSchedule.flow(), 5, t_eps=1e-3, **ORDER.get(kind, {}))


@pytest.mark.parametrize("kind", ALL)
def test_what_is_constant_stays(kind):
    """A network that always says the same data ends there, up to the noise that is left."""
    options = {"last": "euler"} if kind is HeunSolver else ORDER.get(kind, {})
    solver = kind(SCHEDULE, 5, t_eps=1e-3, timesteps="uniform", **options)
    x = torch.tensor([[0.5]], dtype=torch.float64)
    data = torch.full_like(x, 2.0)
    found = GASSampler(solver, lambda x, t, c: data, "sample")(x)
    noise = (x - SCHEDULE.alpha(1.0) * data) / SCHEDULE.sigma(1.0)
    exact = SCHEDULE.alpha(1e-3) * data + SCHEDULE.sigma(1e-3) * noise
    assert (found - exact).abs().max() <= 1e-10


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: UniPCSolver(SCHEDULE, 4, 5), "orders 1 to 4"),
        (lambda: IPNDMSolver(SCHEDULE, 4, 0), "orders 1 to 4"),
        (lambda: UniPCSolver(SCHEDULE, 2, 2, timesteps=[1.0, 0.2, 0.3]), "decreasing"),
        (lambda: UniPCSolver(SCHEDULE, 2, 2, timesteps=[1.0, 0.2]), "Expected 3 decreasing"),
        (lambda: UniPCSolver(SCHEDULE, 2, 2, timesteps=[1.0, 0.2, 0.0]), "t_eps is 0.0"),
        (lambda: UniPCSolver(SCHEDULE, 2, 2, timesteps=[1.5, 0.2, 0.1]), "begin at 1.5"),
        (lambda: DPMSolver(SCHEDULE, 0), "at least one"),
        (lambda: DPMSolver(SCHEDULE, 4, timesteps="cosine"), "'cosine' is unknown"),
        (lambda: UniPCSolver(SCHEDULE, 4).coefficients(), "prediction_type"),
    ],
)
def test_impossible_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
