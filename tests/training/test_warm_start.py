import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mixture import SCHEDULE, mixture_denoiser
from toy_run import randn

from gas_ext import GASSampler, GeneralizedSolver, NoiseSchedule
from gas_ext.solvers import DEISSolver, DPMSolver, IPNDMSolver, UniPCSolver
from gas_ext.solvers.coefficients import guided_weights
from gas_ext.solvers.timesteps import spaced_timesteps
from gas_ext.training.baselines import classical_solver
from gas_ext.training.warm_start import (
    FIRST_LEVELS,
    corrections_from_weights,
    fit_corrections,
    fit_start,
    from_solver,
    with_steps,
)


def solve(solver, noise):
    with torch.no_grad():
        return GASSampler(solver, mixture_denoiser, "sample")(noise)


@given(
    steps=st.integers(1, 8),
    order=st.integers(1, 8),
    theory_order=st.integers(1, 3),
    spacing=st.sampled_from(["uniform", "quadratic", "logsnr", "edm"]),
    seed=st.integers(0, 1000),
)
def test_corrections_are_recovered(steps, order, theory_order, spacing, seed):
    order = min(order, steps)
    times = spaced_timesteps(SCHEDULE, steps, 1e-3, spacing)
    # Row i acts from step i on.
    active = torch.arange(order)[:, None] <= torch.arange(steps)
    data, state = randn(2, order, steps, seed=seed) * active
    weights = guided_weights(SCHEDULE, times, data, state, theory_order)
    found = corrections_from_weights(SCHEDULE, times, weights, theory_order)
    again = guided_weights(SCHEDULE, times, *found, theory_order)
    for ours, wanted in zip(again, weights, strict=True):
        assert (ours - wanted).abs().max() <= 1e-9 * (1.0 + weights.data.abs().max())
    assert torch.equal(found[1] != 0, state != 0)


@pytest.mark.parametrize(
    "classical",
    [
        UniPCSolver(SCHEDULE, 5, 3, timesteps="logsnr"),
        UniPCSolver(SCHEDULE, 6, 2, timesteps="quadratic", variant="bh2"),
        IPNDMSolver(SCHEDULE, 5, 4, timesteps="edm"),
        IPNDMSolver(SCHEDULE, 4, 2, timesteps=[1.0, 0.6, 0.5, 0.1, 0.01]),
        DEISSolver(SCHEDULE, 5, 3),
        DPMSolver(SCHEDULE, 5, 3, timesteps="edm", lower_order_final=True),
        classical_solver(SCHEDULE, 4, 2, "logsnr").solver,
        GeneralizedSolver(SCHEDULE, 4, theory_guidance=False),
    ],
    ids=lambda solver: f"{type(solver).__name__}-{solver.steps}",
)
@pytest.mark.parametrize("theory_order", [1, 2, 3])
def test_a_classical_solver_is_reproduced(classical, theory_order):
    noise = randn(4, 3, 5)
    learnable = from_solver(classical, theory_order=theory_order)
    found, wanted = solve(learnable, noise), solve(classical, noise)
    # The times pass through their logits.
    assert (found - wanted).abs().max() <= 1e-9
    assert learnable.timestep_logits.requires_grad


def test_a_learned_solver_is_rewritten_for_another_theory_order_and_exported(tmp_path):
    solver = GeneralizedSolver(SCHEDULE, 5, theory_order=2, timesteps="quadratic")
    with torch.no_grad():
        for parameter in solver.parameters():
            parameter.add_(0.05 * randn(*parameter.shape, dtype=torch.float32))
    rewritten = from_solver(solver)
    noise = randn(4, 3, 5)
    assert (solve(rewritten, noise) - solve(solver, noise)).abs().max() <= 1e-9
    rewritten.save_reference_checkpoint(tmp_path / "student.pt")
    again = GeneralizedSolver.from_reference_checkpoint(tmp_path / "student.pt", SCHEDULE, steps=5)
    # The published form is float32.
    assert (solve(again, noise) - solve(rewritten, noise)).abs().max() <= 1e-4


def test_too_low_an_order_and_weights_out_of_reach_are_refused():
    with pytest.raises(ValueError, match="uses 4 past states"):
        from_solver(UniPCSolver(SCHEDULE, 5, 3), order=2)
    flow = NoiseSchedule.flow()
    free = GeneralizedSolver(flow, 4, theory_guidance=False)
    with torch.no_grad():
        free.data_corrections.add_(0.1)
    with pytest.raises(ValueError, match="theory_order=1"):
        from_solver(free, theory_order=3)
    assert from_solver(free, theory_order=1).theory_order == 1


def test_other_numbers_of_steps_keep_the_curve():
    solver = GeneralizedSolver(SCHEDULE, 4, timesteps="quadratic", guidance_scale=2.0)
    same = with_steps(solver, 4)
    assert (same.timesteps() - solver.timesteps()).abs().max() <= 1e-6
    for steps in (1, 2, 3, 6, 12):
        new = with_steps(solver, steps)
        times = new.timesteps().detach()
        assert times[0] == 1.0
        assert times[-1].item() == pytest.approx(solver.t_eps)
        assert new.guidance_scale == 2.0
        if steps % 4 == 0:
            assert (times[:: steps // 4] - solver.timesteps()).abs().max() <= 1e-6
    assert with_steps(GeneralizedSolver(SCHEDULE, 4, preset="ld3"), 6).preset == "ld3"
    with pytest.raises(ValueError, match="free weights"):
        with_steps(GeneralizedSolver(SCHEDULE, 4, theory_guidance=False), 5)


@pytest.mark.parametrize(("spacing", "theory_order"), [("uniform", 3), ("quadratic", 2), ("logsnr", 1)])
def test_fitting_brings_a_solver_closer_to_the_fine_solution(spacing, theory_order):
    noise, held_out = randn(64, 8, seed=1), randn(64, 8, seed=2)
    target = solve(classical_solver(SCHEDULE, 60, 3, "logsnr").solver, held_out)
    solver = GeneralizedSolver(SCHEDULE, 4, theory_order=theory_order, timesteps=spacing).double()
    before = (solve(solver, held_out) - target).square().mean()
    times = solver.timesteps().detach().clone()
    fit_corrections(solver, mixture_denoiser, noise, prediction_type="sample", batch_size=20)
    after = (solve(solver, held_out) - target).square().mean()
    assert after < 0.7 * before
    assert torch.equal(solver.timesteps().detach(), times)
    assert (solver.time_offsets == 0).all()


@pytest.mark.parametrize(("steps", "factor", "lower"), [(2, 1.0, True), (2, 0.95, False), (5, 1.0, False)])
def test_a_lower_first_level_is_used_if_it_is_clearly_closer(monkeypatch, steps, factor, lower):
    """At 2 steps it is 0.1 % closer."""
    monkeypatch.setattr("gas_ext.training.warm_start._CLEARLY", factor)
    noise = randn(48, 8, seed=1)
    target = solve(classical_solver(SCHEDULE, 60, 3, "logsnr").solver, noise)
    solver = GeneralizedSolver(SCHEDULE, steps, theory_order=1, timesteps="logsnr").double()
    seen = []
    part = fit_start(
        solver,
        mixture_denoiser,
        noise,
        target,
        prediction_type="sample",
        batch_size=20,
        progress=lambda part, distance: seen.append((distance, part)),
    )
    assert [tried for _, tried in seen] == list(FIRST_LEVELS)
    distance, best = min(seen)
    assert (best < 1.0 and distance < factor * seen[0][0]) == lower
    assert part == (best if lower else 1.0)
    best = next(distance for distance, tried in seen if tried == part)
    assert (solve(solver, noise) - target).abs().mean().item() == pytest.approx(best, rel=1e-9)
    level = torch.exp(-SCHEDULE.lambda_(1.0 + solver.time_offsets[0].detach()))
    assert level.item() == pytest.approx(part * torch.exp(-SCHEDULE.lambda_(torch.ones(()).double())).item())
    assert (solver.time_offsets[1:] == 0).all()
    plain = GeneralizedSolver(SCHEDULE, steps, theory_order=1, timesteps="logsnr").double()
    fit_corrections(plain, mixture_denoiser, noise, prediction_type="sample", batch_size=20)
    assert (solve(plain, noise) - target).abs().mean().item() == pytest.approx(seen[0][0], rel=1e-9)


def test_offsets_that_are_not_learned_stay():
    noise = randn(16, 8)
    solver = GeneralizedSolver(SCHEDULE, 3, preset="s4s", theory_guidance=False).double()
    assert fit_start(solver, mixture_denoiser, noise, noise.tanh(), prediction_type="sample") == 1.0
    assert (solver.time_offsets == 0).all()


def test_fitting_a_single_step_is_least_squares():
    """With one step the fit is the regression of the fine solution on noise and data prediction."""
    noise = randn(200, 4)
    solver = GeneralizedSolver(SCHEDULE, 1, t_eps=0.05).double()
    fit_corrections(solver, mixture_denoiser, noise, prediction_type="sample", substeps=8, ridge=0.0)
    weights = solver.weights()
    with torch.no_grad():
        data = mixture_denoiser(noise, torch.tensor(1.0, dtype=torch.float64))
    terms = torch.stack([noise.flatten(), data.flatten()], dim=1)
    fine = solve(classical_solver(SCHEDULE, 8, 3, "logsnr", 0.05).solver, noise).flatten()
    wanted = torch.linalg.lstsq(terms, fine[:, None]).solution[:, 0]
    found = torch.cat([weights.state[0], weights.data[0]]).detach()
    # At t = 1 both terms are nearly the same vector; what they predict is well determined, they are not.
    assert (terms @ (found - wanted)).abs().max() <= 1e-5 * fine.abs().max()


@pytest.mark.parametrize("preset", ["gs", "s4s"])
def test_free_weights_are_fitted_as_corrections_are(preset):
    """Fits give the same weights in both forms, if those of the states are free too."""
    noise = randn(40, 3)
    free = GeneralizedSolver(SCHEDULE, 3, theory_guidance=False, timesteps="logsnr", preset=preset)
    guided = GeneralizedSolver(SCHEDULE, 3, timesteps="logsnr")
    before = free.state_corrections.detach().clone()
    for solver in (free, guided):
        fit_corrections(solver, mixture_denoiser, noise, prediction_type="sample")
    if preset == "gs":
        for found, expected in zip(free.weights(), guided.weights(), strict=True):
            assert torch.allclose(found, expected, atol=1e-8)
    else:
        assert torch.equal(free.state_corrections, before)
        start = GeneralizedSolver(SCHEDULE, 3, theory_guidance=False, timesteps="logsnr", preset=preset)
        target = solve(classical_solver(SCHEDULE, 60, 3, "logsnr").solver, noise)
        distances = [(solve(each, noise) - target).abs().mean() for each in (free, start)]
        assert distances[0] < 0.7 * distances[1]


@pytest.mark.parametrize(
    ("call", "where"),
    [
        (1, r"step 1 of the fine trajectory's 12 \(t = 1\)"),
        (4, r"step 4 of the fine trajectory's 12 \(t = 0\.7\d*\)"),
        (13, r"step 1 of the solver's 2 \(t = 1\)"),
        (14, r"step 2 of the solver's 2 \(t = 0\.3\d*\)"),
    ],
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_evaluation_that_is_not_finite_is_named(call, where, value):
    solver = GeneralizedSolver(SCHEDULE, 2, timesteps="logsnr")
    network = faulty([call], value)
    noise = randn(4, 3, dtype=torch.float32)
    with pytest.raises(ValueError, match=f"^The network returned NaN or infinity at {where}, so .*float32.$"):
        fit_start(solver, network, noise, noise, prediction_type="sample")


def test_another_first_level_that_is_not_finite_is_skipped():
    solver = GeneralizedSolver(SCHEDULE, 2, timesteps="logsnr")
    distances, noise = {}, randn(4, 3)
    network, progress = faulty([15], math.nan), distances.__setitem__
    assert fit_start(solver, network, noise, noise, prediction_type="sample", progress=progress) != 1 / 4
    assert [part for part, distance in distances.items() if math.isnan(distance)] == [1 / 4]


def faulty(calls, value):
    """Return a network with one sample that is not finite at some of its calls, counted from 1."""
    count = 0

    def network(x, t, condition):
        nonlocal count
        count += 1
        output = mixture_denoiser(x, t, condition)
        output[1] = value if count in calls else output[1]
        return output

    return network


def test_solvers_without_weights_to_fit():
    noise = randn(2, 3)
    with pytest.raises(ValueError, match="preset ld3 has no weights to fit"):
        fit_corrections(GeneralizedSolver(SCHEDULE, 2, preset="ld3"), mixture_denoiser, noise)
    with pytest.raises(ValueError, match="compat='reference-s4s' has no weights"):
        fit_corrections(GeneralizedSolver(SCHEDULE, 3, compat="reference-s4s"), mixture_denoiser, noise)
    with pytest.raises(ValueError, match="Lambda is infinite at t = 1"):
        fit_corrections(GeneralizedSolver(NoiseSchedule.flow(), 2), lambda x, t, c: x, noise)
