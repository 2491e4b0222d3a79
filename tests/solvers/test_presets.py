"""Each preset trains its parameters and no others."""

from typing import get_args

import pytest
import torch
from mixture import SCHEDULE, mixture_denoiser

from gas_ext import GASSampler, GeneralizedSolver
from gas_ext.solvers.presets import DATA, OFFSETS, PRESETS, STATE, TIMES, PresetName, get_preset
from gas_ext.training import TrainingConfig, train_solver
from gas_ext.training.adversarial import Adversary
from gas_ext.training.discriminators import build_discriminator
from gas_ext.training.optimizers import FullMatrixAdam

LEARNED = {
    "gs": {TIMES, OFFSETS, DATA, STATE},
    "ld3": {TIMES, OFFSETS},
    "learned-times": {TIMES},
    "s4s": {DATA},
    "s4s-alt": {TIMES, OFFSETS, DATA},
}


def make(preset, steps=3):
    return GeneralizedSolver(SCHEDULE, steps, theory_guidance=not get_preset(preset).free, preset=preset)


def data():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(8, 2, 8, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        guide = GASSampler(GeneralizedSolver(SCHEDULE, 32, timesteps="logsnr"), mixture_denoiser)
        return noise, guide(noise)


def test_names_and_parameters():
    assert list(get_args(PresetName)) == list(PRESETS) == list(LEARNED)
    assert {preset: set(PRESETS[preset].learned) for preset in PRESETS} == LEARNED


@pytest.mark.slow
@pytest.mark.parametrize("gas", [False, True])
@pytest.mark.parametrize("preset", PRESETS)
def test_only_trained_parameters_change(preset, gas):
    solver, (noise, target) = make(preset), data()
    before = {name: value.detach().clone() for name, value in solver.named_parameters()}
    config = TrainingConfig(iterations=8, warmup=0)
    discriminator = build_discriminator("convolution", (2, 8), seed=0, width=4).double()
    adversary = Adversary(discriminator, rate=1e-3) if gas else None
    train_solver(solver, mixture_denoiser, noise, target, config=config, adversary=adversary)
    changed = {name for name, value in solver.named_parameters() if not torch.equal(value, before[name])}
    assert changed == LEARNED[preset]


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["ld3", "learned-times", "s4s", "s4s-alt"])
def test_training_reduces_the_error(preset):
    solver, (noise, target) = make(preset), data()
    before = (GASSampler(solver, mixture_denoiser)(noise) - target).abs().mean().item()
    train_solver(solver, mixture_denoiser, noise, target, config=TrainingConfig(iterations=60))
    after = (GASSampler(solver, mixture_denoiser)(noise) - target).abs().mean().item()
    assert after < 0.9 * before


@pytest.mark.parametrize("optimizer", ["full_adam", "adam"])
@pytest.mark.parametrize("preset", PRESETS)
def test_the_optimizer_has_only_trained_parameters(preset, optimizer):
    solver = make(preset)
    made = TrainingConfig(optimizer=optimizer, time_rate=1.0, offset_rate=2.0, coefficient_rate=3.0)
    groups = made.make_optimizer(solver).param_groups
    names = {id(value): name for name, value in solver.named_parameters()}
    assert {names[id(p)] for group in groups for p in group["params"]} == LEARNED[preset]
    rates = {TIMES: 1.0, OFFSETS: 2.0, DATA: 3.0, STATE: 3.0}
    for group in groups:
        assert {rates[names[id(p)]] for p in group["params"]} == {group["base_lr"]}


def test_the_full_matrix_spans_the_trained_parameters():
    solver = make("ld3")
    optimizer = TrainingConfig().make_optimizer(solver)
    assert isinstance(optimizer, FullMatrixAdam)
    GASSampler(solver, mixture_denoiser)(torch.ones(1, 2, 8)).sum().backward()
    optimizer.step()
    (state,) = optimizer.state.values()
    assert len(state["mean"]) == 2 + 3


@pytest.mark.parametrize("preset", PRESETS)
def test_only_trained_parameters_require_gradients(preset):
    solver = make(preset)
    for _ in range(2):
        assert {name for name, p in solver.named_parameters() if p.requires_grad} == LEARNED[preset]
        assert not any(p.requires_grad for p in solver.requires_grad_(False).parameters())
        assert solver.requires_grad_() is solver


@pytest.mark.parametrize("preset", PRESETS)
def test_files_record_the_preset(tmp_path, preset):
    path = tmp_path / "solver.safetensors"
    make(preset).save(path)
    loaded = GeneralizedSolver.load(path)
    assert loaded.preset == preset
    assert {name for name, p in loaded.named_parameters() if p.requires_grad} == LEARNED[preset]
    assert f"preset={preset}" in repr(loaded)


def test_one_step_has_no_times_to_learn():
    with pytest.raises(ValueError, match="nothing to learn; use more steps or another preset"):
        TrainingConfig().make_optimizer(make("learned-times", 1))
