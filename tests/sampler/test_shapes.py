"""Nothing assumes images: a signal and a video through sampler and training."""

import pytest
import torch

from gas_ext import Denoiser, GASSampler, GeneralizedSolver, NoiseSchedule
from gas_ext.training import TrainingConfig, train_solver
from gas_ext.training.baselines import classical_solver

SCHEDULE = NoiseSchedule.vp_linear()
SHAPES = {"vector": (7,), "signal": (2, 33), "video": (3, 4, 6, 5)}


def toy(shape: tuple[int, ...]) -> Denoiser:
    """Exact denoiser of data at +-1 in every number."""

    def predict(x, t, condition):
        alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        return torch.tanh((alpha / sigma**2).to(x) * x)

    return Denoiser.from_callable(predict, schedule=SCHEDULE, prediction_type="sample", sample_shape=shape)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_sampling_and_learning(shape):
    denoiser = toy(shape)
    noise = torch.randn(8, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        target = GASSampler(classical_solver(SCHEDULE, 20, 3, "logsnr").solver, denoiser)(noise)
    assert target.shape == noise.shape
    solver = GeneralizedSolver(SCHEDULE, steps=4)
    with torch.no_grad():
        before = (GASSampler(solver, denoiser)(noise) - target).abs().mean()
    train_solver(solver, denoiser, noise, target, config=TrainingConfig(iterations=30, batch_size=4))
    with torch.no_grad():
        after = (GASSampler(solver, denoiser)(noise) - target).abs().mean()
    assert after < 0.8 * before
