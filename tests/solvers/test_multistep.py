"""What holds for all training-free solvers."""

import pytest
import torch
from multistep_tools import SCHEDULE, errors

from gas_ext import GASSampler, NoiseSchedule
from gas_ext.solvers import DEISSolver, DPMSolver, HeunSolver, IPNDMSolver, UniPCSolver

ALL = [DEISSolver, DPMSolver, HeunSolver, IPNDMSolver, UniPCSolver]


def build(cls, steps, schedule=SCHEDULE, **options):
    """A solver that ends at t_eps."""
    if cls is HeunSolver:
        options["last"] = "euler" if steps % 2 else "heun"
    if cls is IPNDMSolver:
        options["order"] = 2
    return cls(schedule, steps, **options)


@pytest.mark.parametrize("cls", ALL)
def test_custom_timesteps(cls):
    times = [1.0, 0.7, 0.3, 0.02]
    solver = build(cls, 6 if cls is HeunSolver else 3, timesteps=times)
    assert sorted(set(solver.timesteps().tolist()), reverse=True) == times
    assert solver.t_eps == 0.02


@pytest.mark.parametrize("cls", ALL)
def test_weights_computed_without_gradients_serve_where_gradients_are_recorded(cls):
    solver = build(cls, 4, t_eps=1e-2, timesteps="quadratic")
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


@pytest.mark.parametrize("cls", [DEISSolver, HeunSolver, IPNDMSolver, UniPCSolver])
def test_an_infinite_lambda_is_refused(cls):
    with pytest.raises(ValueError, match=r"infinite at t = 1 .* use DPM-Solver"):
        build(cls, 5, NoiseSchedule.flow(), t_eps=1e-3)


@pytest.mark.parametrize("cls", ALL)
def test_constant_data_is_solved_exactly(cls):
    solver = build(cls, 5, t_eps=1e-3, timesteps="uniform")
    x = torch.tensor([[0.5]], dtype=torch.float64)
    data = torch.full_like(x, 2.0)
    found = GASSampler(solver, lambda x, t, c: data, "sample")(x)
    noise = (x - SCHEDULE.alpha(1.0) * data) / SCHEDULE.sigma(1.0)
    exact = SCHEDULE.alpha(1e-3) * data + SCHEDULE.sigma(1e-3) * noise
    assert (found - exact).abs().max() <= 1e-10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "factor", "options"),
    [
        (DPMSolver, 1.8, {"order": 1, "exact_steps": 2000}),
        (DPMSolver, 3.0, {"order": 2}),
        (UniPCSolver, 3.0, {"corrector": True}),
        (UniPCSolver, 3.0, {"corrector": False}),
        (DEISSolver, 3.0, {"order": 2, "variable": "time"}),
        (DEISSolver, 3.0, {"order": 2, "variable": "lambda"}),
        (IPNDMSolver, 2.0, {"order": 3}),
        (HeunSolver, 3.0, {"last": "heun", "t_eps": 1e-3, "variable": "sigma"}),
        (HeunSolver, 2.5, {"last": "heun", "t_eps": 1e-3, "variable": "time"}),
    ],
)
def test_more_steps_come_closer(cls, factor, options):
    first, second, third = errors(cls, (10, 20, 40), **{"exact_steps": 400, **options})
    assert first > factor * second > factor**2 * third


def test_descriptions():
    described = UniPCSolver(SCHEDULE, 4, variant="bh2", corrector=False).describe()
    assert list(described) == ["kind", "steps", "order", "timesteps", "variant", "corrector"]
    assert (described["variant"], described["corrector"], described["order"]) == ("bh2", False, 3)
    assert DPMSolver(SCHEDULE, 4).describe()["lower_order_final"] is False
    assert DEISSolver(SCHEDULE, 4).describe()["variable"] == "time"
    heun = HeunSolver(SCHEDULE, 5, 0.1).describe()
    assert [heun[key] for key in ("kind", "steps", "variable", "last")] == ["HeunSolver", 5, "sigma", "zero"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: UniPCSolver(SCHEDULE, 4, 5), "orders 1 to 4"),
        (lambda: UniPCSolver(SCHEDULE, 4, variant="bh3"), "'bh1' or 'bh2'"),
        (lambda: UniPCSolver(SCHEDULE, 2, 2, timesteps=[1.0, 0.2, 0.3]), "decreasing"),
        (lambda: UniPCSolver(SCHEDULE, 2, 2, timesteps=[1.0, 0.2]), "Expected 3 decreasing"),
        (lambda: UniPCSolver(SCHEDULE, 2, 2, timesteps=[1.0, 0.2, 0.0]), "t_eps is 0.0"),
        (lambda: UniPCSolver(SCHEDULE, 2, 2, timesteps=[1.5, 0.2, 0.1]), "start at 1.5"),
        (lambda: UniPCSolver(SCHEDULE, 4).coefficients(), "pass prediction_type"),
        (lambda: IPNDMSolver(SCHEDULE, 4, 0), "orders 1 to 4"),
        (lambda: DEISSolver(SCHEDULE, 5, order=4), "orders 0 to 3"),
        (lambda: DEISSolver(SCHEDULE, 5, variable="rho"), "'time' or 'lambda'"),
        (lambda: DPMSolver(SCHEDULE, 0), "at least 1"),
        (lambda: DPMSolver(SCHEDULE, 4, timesteps="cosine"), "'cosine' is unknown"),
        (lambda: HeunSolver(SCHEDULE, 1, 0.1), "odd number of network evaluations, at least 3"),
        (lambda: HeunSolver(SCHEDULE, 6, 0.1, last="euler"), "steps is 6, .* odd"),
        (lambda: HeunSolver(SCHEDULE, 5, 0.1, last="heun"), "steps is 5, .* even"),
        (lambda: HeunSolver(SCHEDULE, 3), "t_eps is 0.0"),
        (lambda: HeunSolver(SCHEDULE, 3, 0.1, variable="lambda"), "'sigma' or 'time'"),
        (lambda: HeunSolver(SCHEDULE, 3, 0.1, last="none"), "'zero', 'euler' or 'heun'"),
        (lambda: HeunSolver(SCHEDULE, 5, timesteps=[1.0, 0.2, 0.3], t_eps=0.1), "decreasing"),
    ],
)
def test_impossible_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
