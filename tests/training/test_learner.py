import math

import pytest
import torch
from mixture import SCHEDULE, mixture_denoiser

from gas_ext import GASSampler, GeneralizedSolver
from gas_ext.training import TrainingConfig
from gas_ext.training.adversarial import Adversary
from gas_ext.training.batches import Batch, fresh_noise
from gas_ext.training.checkpoints import load_checkpoint, save_checkpoint
from gas_ext.training.discriminators import build_discriminator
from gas_ext.training.learner import Learner
from gas_ext.training.losses import l1_loss
from gas_ext.training.objective import Objective


def make_learner(gas=True, network=mixture_denoiser, **settings):
    solver = GeneralizedSolver(SCHEDULE, 3, timesteps="logsnr")
    adversary = (
        Adversary(build_discriminator("convolution", (2, 8), seed=0, width=4), rate=1e-2) if gas else None
    )
    objective = Objective(GASSampler(solver, network), l1_loss, adversary=adversary)
    return Learner(solver, objective, TrainingConfig(iterations=20, warmup=3, **settings))


def make_batch(iteration):
    noise = fresh_noise(1, iteration, range(4), (2, 8))
    return Batch(
        noise, noise.sign(), torch.arange(4) % 3, fresh_noise=fresh_noise(2, iteration, range(4), (2, 8))
    )


def steps(learner, count):
    for _ in range(count):
        learner.step(make_batch(learner.iteration))
    return learner


def everything(learner):
    """All tensors and numbers of a state, by name."""
    flat = {}

    def walk(tree, prefix):
        for name, value in tree.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{name}/")
            else:
                flat[f"{prefix}{name}"] = value.clone() if isinstance(value, torch.Tensor) else value

    walk(learner.state_dict(), "")
    return flat


def same(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(a[name], b[name]) if isinstance(a[name], torch.Tensor) else a[name] == b[name]
        for name in a
    )


@pytest.mark.parametrize("optimizer", ["full_adam", "adam"])
@pytest.mark.parametrize("gas", [False, True])
def test_a_state_goes_on_with_the_same_bits(tmp_path, gas, optimizer):
    whole = steps(make_learner(gas, optimizer=optimizer), 8)
    half = steps(make_learner(gas, optimizer=optimizer), 5)
    path = save_checkpoint(tmp_path, 5, half.state_dict())
    resumed = make_learner(gas, optimizer=optimizer)
    resumed.load_state_dict(load_checkpoint(path).state)
    assert resumed.iteration == 5
    assert same(everything(resumed), everything(half))
    assert same(everything(steps(resumed, 3)), everything(whole))
    assert not same(everything(half), everything(whole))


def test_global_random_numbers_follow_from_the_iteration():
    def network(x, t, condition):
        return mixture_denoiser(x, t, condition) + 0.01 * torch.randn_like(x)

    whole = steps(make_learner(network=network), 4)
    half = steps(make_learner(network=network), 2)
    torch.manual_seed(99)
    torch.randn(7)
    assert same(everything(steps(half, 2)), everything(whole))


def test_an_iteration_that_is_not_finite_changes_nothing_but_counts():
    learner = steps(make_learner(gas=False), 3)
    before = everything(learner)
    batch = make_batch(3)
    batch.target[0, 0, 0] = math.nan
    learner.step(batch)
    after = everything(learner)
    assert (learner.rejected, learner.in_a_row, learner.iteration) == (1, 1, 4)
    for name, value in before.items():
        if name.startswith(("solver", "optimizer")):
            assert (
                torch.equal(after[name], value) if isinstance(value, torch.Tensor) else after[name] == value
            )
    steps(learner, 1)
    assert (learner.rejected, learner.in_a_row) == (1, 0)
    learner.check()


def test_too_many_in_a_row():
    learner = make_learner(gas=False, max_rejected=2)
    for _ in range(2):
        batch = make_batch(0)
        batch.target[:] = math.inf
        learner.step(batch)
    with pytest.raises(RuntimeError, match="not finite in 2 iterations in a row"):
        learner.check()


def test_what_is_logged():
    numbers = make_learner().step(make_batch(0))
    assert numbers["loss"] == pytest.approx(numbers["distance"] + numbers["adversarial"])
    assert numbers["rate_factor"] == pytest.approx(1 / 3)
    assert {"discriminator", "r1", "r2", "gradient_norm"} <= numbers.keys()
    assert set(make_learner(gas=False).step(make_batch(0))) == {"loss", "gradient_norm", "rate_factor"}
