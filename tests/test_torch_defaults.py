"""Torch's default device and dtype do not change what is built: solvers, samplers, teachers, noise."""

import pytest
import torch

from gas_ext import GASSampler, GeneralizedSolver, NoiseSchedule
from gas_ext._utils.noise import stacked_noise
from gas_ext.solvers import registry
from gas_ext.teachers import load_demo_features
from gas_ext.training import TrainingConfig, train_solver

NOISE = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
SCHEDULES = {
    "vp_from_edm": NoiseSchedule.vp_from_edm,
    "vp_discrete": lambda: NoiseSchedule.vp_discrete([0.9, 0.5, 0.1]),
    "zero terminal SNR": lambda: NoiseSchedule.vp_discrete([0.9, 0.5, 0.1, 0.0]),
    "edm": NoiseSchedule.edm,
    "flow": NoiseSchedule.flow,
}


@pytest.fixture(params=["meta", torch.float64], ids=str)
def other_default(request):
    """Set another default; what comes before it has the usual one."""

    def set_default():
        if request.param == "meta":
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(request.param)

    yield set_default
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


def embedded_sampler():
    return GASSampler.from_pretrained("demo")(NOISE, [1, 2])


def features():
    return load_demo_features()(NOISE)


def classical_solvers():
    schedule = NoiseSchedule.vp_linear()
    return [
        torch.cat(registry.build_solver(name, schedule, 5).coefficients("sample").rows)
        for name in registry.names()
    ]


def learned_solvers():
    return [
        torch.cat(GeneralizedSolver(make(), 4, t_eps=0.35, timesteps=spacing).coefficients("sample").rows)
        for make in SCHEDULES.values()
        for spacing in ("uniform", "quadratic", "logsnr", "edm")
    ]


def training():
    solver = GeneralizedSolver(NoiseSchedule.flow(), 3)
    config = TrainingConfig(iterations=3, batch_size=1)
    train_solver(solver, lambda x, t, condition: x.tanh(), NOISE, 0.5 * NOISE, config=config)
    return list(solver.parameters())


def noise():
    return stacked_noise([3, 4], (2, 5))


@pytest.mark.slow
@pytest.mark.parametrize(
    "build", [embedded_sampler, features, classical_solvers, learned_solvers, training, noise]
)
def test_what_is_built_is_the_same(build, other_default):
    expected = build()
    other_default()
    torch.testing.assert_close(build(), expected, rtol=0, atol=0)
