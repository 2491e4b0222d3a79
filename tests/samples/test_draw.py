import pytest
import torch
from mixture import SCHEDULE, mixture_denoiser

from gas_ext import GASSampler
from gas_ext.samples.draw import draw_samples
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


def test_guidance_reaches_the_network(noise):
    condition, empty = torch.arange(20) % 4, torch.tensor([9])
    solver = classical_solver(SCHEDULE, 4, 2, "quadratic").solver
    run = draw_samples(
        solver, mixture_denoiser, noise, condition, guidance_scale=3.0, unconditional_condition=empty
    )
    with torch.no_grad():
        expected = GASSampler(solver, mixture_denoiser, guidance_scale=3.0)(noise, condition, empty)
    assert torch.equal(run.samples, expected)
