import math

import pytest
import torch
from mixture import SCHEDULE, mixture_denoiser

from gas_ext import GASSampler
from gas_ext.evaluation import Contestant, References, draw_samples, evaluate
from gas_ext.evaluation.metrics import feature_statistics, frechet_distance
from gas_ext.training.baselines import classical_solver


@pytest.fixture
def noise():
    return torch.randn(20, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("steps", [1, 4, 7])
@pytest.mark.parametrize("batch_size", [3, 20, 64])
def test_network_evaluations_are_counted(noise, steps, batch_size):
    calls = 0

    def denoiser(x, t, condition):
        nonlocal calls
        calls += 1
        return mixture_denoiser(x, t, condition)

    solver = classical_solver(SCHEDULE, steps, 1, "uniform").solver
    run = draw_samples(solver, denoiser, noise, batch_size=batch_size, warm_up=True)
    assert run.nfe == steps
    batches = -(-20 // batch_size)
    assert calls == steps * (batches + 1)  # one more batch to warm up
    assert run.ms_per_image > 0


@pytest.mark.parametrize("batch_size", [3, 20, 64])
def test_samples_do_not_depend_on_the_batches(noise, batch_size):
    solver = classical_solver(SCHEDULE, 3, 2, "logsnr").solver
    condition = torch.arange(20) % 4
    with torch.no_grad():
        expected = GASSampler(solver, mixture_denoiser)(noise, condition)
    run = draw_samples(solver, mixture_denoiser, noise, condition, batch_size=batch_size)
    assert torch.equal(run.samples, expected)


def test_progress_adds_up(noise):
    seen = []
    draw_samples(
        classical_solver(SCHEDULE, 1, 1, "edm").solver,
        mixture_denoiser,
        noise,
        batch_size=6,
        progress=seen.append,
    )
    assert seen == [6, 6, 6, 2]


def test_no_noise_is_refused(noise):
    with pytest.raises(ValueError, match="at least one seed"):
        draw_samples(classical_solver(SCHEDULE, 1, 1, "edm").solver, mixture_denoiser, noise[:0])


def contestants():
    return [
        Contestant("teacher", "many", classical_solver(SCHEDULE, 32, 3, "logsnr").solver),
        Contestant("classical", "few", classical_solver(SCHEDULE, 4, 2, "quadratic").solver),
    ]


def test_rows_hold_the_distances(noise):
    data = feature_statistics(torch.randn(50, 2, generator=torch.Generator().manual_seed(1)))
    teacher_like = feature_statistics(torch.randn(50, 2, generator=torch.Generator().manual_seed(2)))
    references = References(lambda samples: samples[:, :2], teacher_like, data)
    rows, samples = evaluate(contestants(), mixture_denoiser, noise, references=references, batch_size=8)
    assert [row.solver for row in rows] == ["teacher", "classical"]
    assert [row.nfe for row in rows] == [32, 4]
    assert rows[0].l1_to_teacher == 0
    assert rows[1].l1_to_teacher == pytest.approx((samples[1] - samples[0]).abs().mean().item(), rel=1e-12)
    moments = feature_statistics(samples[1][:, :2])
    assert rows[1].frechet_to_data == pytest.approx(frechet_distance(*moments[:2], *data[:2]), rel=1e-9)
    assert rows[1].frechet_to_teacher == pytest.approx(
        frechet_distance(*moments[:2], *teacher_like[:2]), rel=1e-9
    )
    assert list(rows[0].to_dict()) == [
        "solver",
        "description",
        "nfe",
        "l1_to_teacher",
        "frechet_to_teacher",
        "frechet_to_data",
        "ms_per_image",
    ]


def test_given_target_is_the_reference_of_all(noise):
    target = torch.zeros_like(noise)
    rows, samples = evaluate(contestants(), mixture_denoiser, noise, target)
    for row, batch in zip(rows, samples, strict=True):
        assert row.l1_to_teacher == pytest.approx(batch.abs().mean().item(), rel=1e-12)
        assert row.frechet_to_data is None
        assert row.frechet_to_teacher is None


def test_solver_that_diverges_costs_only_its_own_row(noise):
    good, broken = contestants()
    times = broken.solver.timesteps()

    def denoiser(x, t, condition):
        return mixture_denoiser(x, t, condition) * (math.nan if abs(t - times[2]) < 1e-9 else 1.0)

    data = feature_statistics(torch.randn(50, 2, generator=torch.Generator().manual_seed(1)))
    references = References(lambda samples: samples[:, :2], data, data)
    rows, _ = evaluate([good, broken, good], denoiser, noise, references=references)
    assert math.isnan(rows[1].l1_to_teacher)
    assert rows[1].frechet_to_teacher is None
    assert rows[1].frechet_to_data is None
    assert rows[1].to_dict()["l1_to_teacher"] is None
    assert rows[2].l1_to_teacher == 0
    assert rows[2].frechet_to_data > 0


def test_guidance_reaches_every_solver(noise):
    condition, empty = torch.arange(20) % 4, torch.tensor([9])
    _, samples = evaluate(
        contestants(),
        mixture_denoiser,
        noise,
        condition=condition,
        guidance_scale=3.0,
        unconditional_condition=empty,
    )
    for contestant, found in zip(contestants(), samples, strict=True):
        with torch.no_grad():
            expected = GASSampler(contestant.solver, mixture_denoiser, guidance_scale=3.0)(
                noise, condition, empty
            )
        assert torch.equal(found, expected)
