import copy
import math

import pytest
import torch
from mixture import SCHEDULE, mixture_denoiser

from gas_ext import GASSampler, GeneralizedSolver
from gas_ext.samples import SampleBatch
from gas_ext.training import TrainingConfig
from gas_ext.training.adversarial import Adversary
from gas_ext.training.checkpoints import load_checkpoint, save_checkpoint
from gas_ext.training.discriminators import build_discriminator
from gas_ext.training.learner import Learner, derived_seed, fresh_noise, split_batch
from gas_ext.training.losses import l1_loss
from gas_ext.training.objective import Objective

LIKE = torch.empty(0, 2, 8)


def make_learner(gas=True, network=mixture_denoiser, **settings):
    solver = GeneralizedSolver(SCHEDULE, 3, timesteps="logsnr")
    adversary = (
        Adversary(build_discriminator("convolution", (2, 8), seed=0, width=4), rate=1e-2) if gas else None
    )
    objective = Objective(GASSampler(solver, network), l1_loss, adversary=adversary)
    return Learner(solver, objective, TrainingConfig(iterations=20, warmup=3, **settings))


def make_batch(iteration):
    noise = fresh_noise(1, iteration, range(4), LIKE)
    return SampleBatch(noise, noise.sign(), torch.arange(4) % 3, None, None)


def steps(learner, count):
    for _ in range(count):
        learner.step(make_batch(learner.iteration))
    return learner


def state_of(learner, only=""):
    """All tensors and numbers of a state, by path."""
    flat = {}

    def walk(tree, prefix):
        for name, value in tree.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{name}/")
            elif prefix.startswith(only):
                flat[f"{prefix}{name}"] = copy.deepcopy(value)

    walk(learner.state_dict(), "")
    return flat


def same(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(a[name], b[name]) if isinstance(a[name], torch.Tensor) else a[name] == b[name]
        for name in a
    )


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["full_adam", "adam"])
@pytest.mark.parametrize("gas", [False, True])
def test_a_state_resumes_with_the_same_bits(tmp_path, gas, optimizer):
    whole = steps(make_learner(gas, optimizer=optimizer), 8)
    half = steps(make_learner(gas, optimizer=optimizer), 5)
    path = save_checkpoint(tmp_path, 5, half.state_dict())
    resumed = make_learner(gas, optimizer=optimizer)
    resumed.load_state_dict(load_checkpoint(path).state)
    assert resumed.iteration == 5
    assert same(state_of(resumed), state_of(half))
    assert same(state_of(steps(resumed, 3)), state_of(whole))
    assert not same(state_of(half), state_of(whole))


def test_global_random_numbers_depend_on_the_iteration_alone():
    def network(x, t, condition):
        return mixture_denoiser(x, t, condition) + 0.01 * torch.randn_like(x)

    whole = steps(make_learner(network=network), 4)
    half = steps(make_learner(network=network), 2)
    torch.manual_seed(99)
    torch.randn(7)
    assert same(state_of(steps(half, 2)), state_of(whole))


def test_an_iteration_that_is_not_finite_changes_only_the_counts():
    learner = steps(make_learner(gas=False), 3)
    before = {part: state_of(learner, part) for part in ("solver", "optimizer")}
    batch = make_batch(3)
    batch.samples[0, 0, 0] = math.nan
    learner.step(batch)
    assert (learner.rejected, learner.in_a_row, learner.iteration) == (1, 1, 4)
    assert all(values and same(state_of(learner, part), values) for part, values in before.items())
    steps(learner, 1)
    assert (learner.rejected, learner.in_a_row) == (1, 0)
    learner.check()


def test_too_many_in_a_row():
    learner = make_learner(gas=False, max_rejected=2)
    for _ in range(2):
        batch = make_batch(0)
        batch.samples[:] = math.inf
        learner.step(batch)
    with pytest.raises(RuntimeError, match="not finite in 2 iterations in a row"):
        learner.check()


def test_logged_numbers():
    numbers = make_learner().step(make_batch(0))
    assert numbers["loss"] == pytest.approx(numbers["distance"] + numbers["adversarial"])
    assert numbers["rate_factor"] == pytest.approx(1 / 3)
    assert {"discriminator", "r1", "r2", "gradient_norm"} <= numbers.keys()
    assert set(make_learner(gas=False).step(make_batch(0))) == {"loss", "gradient_norm", "rate_factor"}


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_the_logged_norm_is_that_before_clipping(clip):
    learner = make_learner(gas=False, clip=clip)
    norm = learner.step(make_batch(0))["gradient_norm"]
    left = torch.cat([parameter.grad.flatten() for parameter in learner.solver.parameters()]).norm().item()
    assert norm == pytest.approx(make_learner(gas=False).step(make_batch(0))["gradient_norm"], rel=1e-12)
    assert left == pytest.approx(norm if clip is None else clip, rel=1e-3)


@pytest.mark.parametrize(("rank", "count", "parts"), [(0, 1, 1), (0, 1, 3), (1, 2, 2)])
def test_fakes_are_made_from_the_noise_of_this_process_s_positions(rank, count, parts):
    learner = make_learner(accumulation=parts, seed=3)
    learner.objective.processes.rank, learner.objective.processes.count = rank, count
    taught = learner.objective.teach_discriminator
    seen = []
    learner.objective.teach_discriminator = lambda parts, noise: seen.append(noise) or taught(parts, noise)
    for iteration in range(2):
        learner.step(make_batch(iteration))
        assert len(seen[-1]) == parts
        expected = fresh_noise(3, iteration, range(4 * rank, 4 * rank + 4), LIKE)
        assert torch.equal(torch.cat(seen[-1]), expected)


def test_parts_hold_everything_once():
    condition = {"label": torch.arange(7), "scale": None}
    whole = SampleBatch(torch.randn(7, 2), torch.randn(7, 2), condition, None, torch.arange(7))
    parts = split_batch(whole, 3)
    assert [len(part.noise) for part in parts] == [3, 2, 2]
    assert torch.equal(torch.cat([part.samples for part in parts]), whole.samples)
    assert torch.equal(torch.cat([part.condition["label"] for part in parts]), torch.arange(7))
    assert all(part.images is None and part.condition["scale"] is None for part in parts)
    assert split_batch(whole, 1)[0] is whole
    with pytest.raises(ValueError, match=r"batch of 7 samples .* 8 parts; lower accumulation"):
        split_batch(whole, 8)


def test_fresh_noise_depends_on_seed_iteration_and_position_alone():
    whole = fresh_noise(3, 10, range(6), LIKE)
    assert torch.equal(fresh_noise(3, 10, range(2, 4), LIKE), whole[2:4])
    torch.manual_seed(5)
    assert torch.equal(fresh_noise(3, 10, range(6), LIKE), whole)
    assert not any(torch.equal(fresh_noise(*other, range(6), LIKE), whole) for other in ((4, 10), (3, 11)))
    assert fresh_noise(3, 10, range(6), LIKE.double()).dtype == torch.float64


def test_fresh_noise_is_standard_normal():
    noise = torch.stack([fresh_noise(0, i, range(8), torch.empty(0, 16)) for i in range(50)])
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1) < 0.05
    assert len(noise.flatten(0, 1).unique(dim=0)) == 400


def test_derived_seeds_fit_the_generators_of_noise():
    seeds = {derived_seed(0, "fresh noise", i, j) for i in range(100) for j in range(10)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**32 for seed in seeds)
