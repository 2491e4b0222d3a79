import math

import pytest
import torch
from mixture import SCHEDULE, mixture_denoiser
from toy_run import randn

from gas_ext.sampler import GASSampler
from gas_ext.solvers.registry import names
from gas_ext.training.baselines import (
    FAMILIES,
    classical_solver,
    classical_solvers,
    named_baselines,
    select_baseline,
)


@pytest.fixture(scope="module")
def problem():
    noise = randn(40, 6)
    guide = classical_solver(SCHEDULE, 64, 3, "logsnr")
    with torch.no_grad():
        return noise, GASSampler(guide.solver, mixture_denoiser)(noise)


def test_every_order_and_spacing_once():
    baselines = classical_solvers(SCHEDULE, 4)
    assert len({(b.order, b.spacing) for b in baselines}) == len(baselines) == 12
    assert len({b.description for b in baselines}) == 12
    assert all(b.solver.steps == 4 for b in baselines)


@pytest.mark.parametrize(("steps", "orders"), [(1, {1}), (2, {1, 2}), (3, {1, 2, 3})])
def test_orders_that_the_steps_cannot_reach_are_left_out(steps, orders):
    assert {b.order for b in classical_solvers(SCHEDULE, steps)} == orders


def test_a_classical_solver_is_described_and_has_nothing_to_learn():
    baseline = classical_solver(SCHEDULE, 4, 2, "quadratic")
    assert (baseline.name, baseline.order, baseline.spacing) == ("dpm++-2@quadratic", 2, "quadratic")
    assert not any(p.requires_grad for p in baseline.solver.parameters())


def test_error_falls_with_the_steps(problem):
    noise, target = problem
    errors = [
        select_baseline([classical_solver(SCHEDULE, n, 2, "logsnr")], mixture_denoiser, noise, target)[1][0]
        for n in (4, 8, 16, 32)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 20


@pytest.mark.parametrize("batch_size", [7, 40])
def test_selection_takes_the_closest(problem, batch_size):
    noise, target = problem
    baselines = classical_solvers(SCHEDULE, 5)
    seen = []
    best, distances = select_baseline(
        baselines,
        mixture_denoiser,
        noise,
        target,
        batch_size=batch_size,
        progress=lambda b, d: seen.append((b, d)),
    )
    assert seen == list(zip(baselines, distances, strict=True))
    assert distances[baselines.index(best)] == min(distances)
    with torch.no_grad():
        direct = (GASSampler(best.solver, mixture_denoiser)(noise) - target).abs().mean().item()
    assert min(distances) == pytest.approx(direct, rel=1e-12)


def test_all_families_are_compared(problem):
    noise, target = problem
    candidates = [*classical_solvers(SCHEDULE, 5), *named_baselines(SCHEDULE, 5)]
    best, distances = select_baseline(candidates, mixture_denoiser, noise, target)
    assert distances[candidates.index(best)] == min(distances)
    by_name = {c.description: d for c, d in zip(candidates, distances, strict=True)}
    assert by_name["DDIM, EDM times"] == pytest.approx(by_name["DPM-Solver++(1M), EDM times"], rel=1e-9)


def test_every_family_is_one_of_the_catalog():
    short = {name.removesuffix("-bh2") for name in names()}
    assert {name for family in FAMILIES.values() for name in family} <= short | set(names())
    assert len({baseline.name for baseline in named_baselines(SCHEDULE, 4)}) == len(
        named_baselines(SCHEDULE, 4)
    )


def test_selection_never_takes_nan(problem):
    noise, target = problem
    broken, sound = classical_solver(SCHEDULE, 3, 1, "uniform"), classical_solver(SCHEDULE, 3, 1, "edm")

    def denoiser(x, t, condition):
        in_uniform = abs(t.item() - broken.solver.timesteps()[1].item()) < 1e-9
        return x * (math.nan if in_uniform else 1.0)

    best, distances = select_baseline([broken, sound], denoiser, noise, target)
    assert math.isnan(distances[0])
    assert best is sound


def test_selection_needs_a_candidate(problem):
    with pytest.raises(ValueError, match="at least one"):
        select_baseline([], mixture_denoiser, *problem)


def test_selection_samples_with_guidance(problem):
    noise, target = problem
    baseline = classical_solver(SCHEDULE, 3, 2, "edm")
    condition, empty = torch.arange(40) % 4, torch.tensor([9])
    options = {"guidance_scale": 3.0, "unconditional_condition": empty, "batch_size": 7}
    _, (distance,) = select_baseline([baseline], mixture_denoiser, noise, target, condition, **options)
    with torch.no_grad():
        samples = GASSampler(baseline.solver, mixture_denoiser, guidance_scale=3.0)(noise, condition, empty)
    assert distance == pytest.approx((samples - target).abs().mean().item(), rel=1e-12)
