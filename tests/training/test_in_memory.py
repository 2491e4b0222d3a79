import json
import math

import pytest
import torch
from mixture import SCHEDULE, mixture_denoiser
from toy_run import close, randn, same

from gas_ext import GASSampler, GeneralizedSolver
from gas_ext.training import TrainingConfig, train_solver
from gas_ext.training.adversarial import Adversary
from gas_ext.training.baselines import classical_solver
from gas_ext.training.discriminators import build_discriminator


@pytest.fixture(scope="module")
def problem():
    noise, condition = randn(96, 6), torch.arange(96) % 3
    with torch.no_grad():
        guide = classical_solver(SCHEDULE, 64, 3, "logsnr").solver
        return noise, GASSampler(guide, mixture_denoiser)(noise, condition), condition


def fresh(steps=4):
    return GeneralizedSolver(SCHEDULE, steps, theory_order=2, timesteps="quadratic")


def trained(problem, network=mixture_denoiser, solver=None, settings=None, **options):
    """Train a solver; options of the config are `settings`."""
    solver = solver or fresh()
    return solver, train_solver(
        solver, network, *problem, config=TrainingConfig(**(settings or {})), **options
    )


def nan_network(x, t, condition):
    return x * math.nan


def distance(solver, noise, target, condition):
    with torch.no_grad():
        return (GASSampler(solver, mixture_denoiser)(noise, condition) - target).abs().mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["full_adam", "adam"])
def test_learns_and_generalizes_to_held_out_samples(problem, optimizer):
    held_out = [part[64:] for part in problem]
    settings = {"iterations": 80, "batch_size": 16, "optimizer": optimizer}
    solver, summary = trained([part[:64] for part in problem], settings=settings)
    assert distance(solver, *held_out) < 0.6 * distance(fresh(), *held_out)
    assert len(summary.losses) == 80
    assert summary.rejected == 0
    assert sum(summary.losses[-10:]) < 0.7 * sum(summary.losses[:10])


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["l2", "huber"])
def test_other_losses(problem, loss):
    solver, _ = trained(problem, settings={"iterations": 40, "loss": loss})
    assert distance(solver, *problem) < distance(fresh(), *problem)


def test_loss_callable_is_used(problem):
    seen = []

    def loss(prediction, target):
        seen.append(prediction.shape)
        return (prediction - target).abs().max()

    trained(problem, loss=loss, settings={"iterations": 3, "batch_size": 5})
    assert seen == [torch.Size([5, 6])] * 3


def test_same_seed_same_bits(problem):
    settings = {"iterations": 12, "batch_size": 7}
    runs = [trained(problem, settings={**settings, "seed": seed}) for seed in (3, 3, 4)]
    assert runs[0][1].losses == runs[1][1].losses != runs[2][1].losses
    assert same(runs[0][0], runs[1][0])


def test_any_shape_and_a_single_step():
    noise = randn(6, 2, 3, 4, dtype=torch.float32)
    settings = {"iterations": 3, "batch_size": 100}
    _, summary = trained((noise, noise.sign()), solver=fresh(steps=1), settings=settings)
    assert summary.samples == 6
    assert all(math.isfinite(loss) for loss in summary.losses)


def test_iteration_that_is_not_finite_is_skipped(problem):
    calls = 0

    def sometimes_nan(x, t, condition):
        nonlocal calls
        calls += 1
        return mixture_denoiser(x, t, condition) * (math.nan if 9 <= calls <= 12 else 1.0)

    solver, summary = trained(problem, sometimes_nan, settings={"iterations": 6})
    assert summary.rejected == 1
    assert math.isnan(summary.losses[2])
    assert all(torch.isfinite(p).all() for p in solver.parameters())


def test_gives_up_if_nothing_is_finite_and_leaves_the_solver_unchanged(problem):
    solver = fresh()
    with pytest.raises(RuntimeError, match="not finite in 10 iterations"):
        trained(problem, nan_network, solver, {"iterations": 20}, prediction_type="epsilon")
    assert same(solver, fresh())
    assert (solver.prediction_type, solver.training_summary) == (None, {})


def test_interrupted_training_restores_the_solver(problem):
    def stop(iteration, loss):
        if iteration == 3:
            raise KeyboardInterrupt

    solver = fresh()
    with pytest.raises(KeyboardInterrupt):
        trained(problem, solver=solver, progress=stop)
    assert same(solver, fresh())


class Linear(torch.nn.Module):
    """An epsilon network with a learnable and a fixed weight; its condition is one number per sample."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.4, dtype=torch.float64))
        self.fixed = torch.nn.Parameter(torch.ones((), dtype=torch.float64), requires_grad=False)

    def forward(self, x, t, condition):
        return self.weight * self.fixed * x + 0.1 * condition.view(-1, 1).to(x.dtype)


@pytest.mark.parametrize("wrap", [lambda network: network, lambda network: lambda *inputs: network(*inputs)])
def test_network_gets_no_gradient_and_keeps_its_flags(problem, wrap):
    network = Linear()
    trained(problem, wrap(network), settings={"iterations": 2})
    assert network.weight.grad is None
    assert network.weight.requires_grad
    assert not network.fixed.requires_grad


def test_progress_counts_from_one(problem):
    seen = []
    _, summary = trained(problem, settings={"iterations": 4}, progress=lambda *values: seen.append(values))
    assert seen == list(enumerate(summary.losses, start=1))


def test_rates():
    config = TrainingConfig(iterations=110, warmup=10)
    factors = [config.rate_factor(i) for i in range(110)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9] == factors[10] == 1
    assert factors[60] == pytest.approx(0.5)
    assert 0 < factors[-1] < 1e-3
    assert TrainingConfig(iterations=10, warmup=0, schedule="constant").rate_factor(9) == 1


@pytest.mark.parametrize(
    ("preset", "steps", "settings", "factor"),
    [
        ("gs", 3, {}, 1.0),
        ("gs", 4, {}, 1.0),
        ("gs", 10, {}, (39 / 219) ** 0.5),  # 9 times, 10 offsets, 2 x 10 x 10 corrections
        ("gs", 10, {"scale_rates": False}, 1.0),
        ("gs", 10, {"optimizer": "adam"}, 1.0),
        ("ld3", 10, {}, 1.0),
        ("s4s-alt", 10, {}, 1.0),
    ],
)
def test_gs_with_many_steps_learns_at_lower_rates(preset, steps, settings, factor):
    solver = GeneralizedSolver(SCHEDULE, steps, preset=preset, theory_guidance=preset != "s4s-alt")
    config = TrainingConfig(time_rate=1e-2, offset_rate=2e-2, coefficient_rate=3e-2, **settings)
    rates = [group["base_lr"] for group in config.make_optimizer(solver).param_groups]
    assert rates == pytest.approx([factor * rate for rate in (1e-2, 2e-2, 3e-2)][: len(rates)])
    assert len(rates) == (2 if preset == "ld3" else 3)


def test_shapes_must_agree(problem):
    noise, target, _ = problem
    with pytest.raises(ValueError, match="one shape"):
        trained((noise, target[1:]))


def test_summary_fits_a_file_header(problem):
    _, summary = trained(problem, settings={"iterations": 2})
    record = json.loads(json.dumps(summary.to_dict(), allow_nan=False))
    assert record["config"]["iterations"] == 2
    assert record["samples"] == 96
    assert record["first_loss"] == summary.losses[0]


def test_saved_solver_samples_as_it_was_trained(problem, tmp_path):
    noise, _, condition = problem
    network, empty = Linear(), torch.zeros(1, dtype=torch.int64)
    solver, summary = trained(
        problem,
        network,
        settings={"iterations": 2},
        prediction_type="epsilon",
        guidance_scale=7.5,
        unconditional_condition=empty,
    )
    solver.save(tmp_path / "solver.safetensors")
    loaded = GeneralizedSolver.load(tmp_path / "solver.safetensors")
    sampler = GASSampler(loaded, network)
    assert (sampler.prediction_type, sampler.guidance_scale) == ("epsilon", 7.5)
    assert loaded.training_summary["first_loss"] == summary.to_dict()["first_loss"] > 0
    with torch.no_grad():
        expected = GASSampler(solver, network, "epsilon", 7.5)(noise, condition, empty)
        assert torch.equal(sampler(noise, condition, empty), expected)
        unguided = GASSampler(fresh(), network, "epsilon")(noise, condition)
    assert not torch.allclose(expected, unguided)


def test_unconditional_condition_reaches_the_network(problem):
    seen = []

    def network(x, t, c):
        seen.append(c)
        return mixture_denoiser(x, t, c)

    options = {"guidance_scale": 2.0, "unconditional_condition": torch.tensor([7])}
    trained(problem, network, settings={"iterations": 1, "batch_size": 5}, **options)
    assert all(len(c) == 10 and (c[:5] == 7).all() and (c[5:] < 3).all() for c in seen)


def test_solver_without_gradients_is_refused(problem):
    with pytest.raises(ValueError, match="requires_grad_"):
        trained(problem, solver=fresh().requires_grad_(False))
    with torch.no_grad(), pytest.raises(ValueError, match="no_grad"):
        trained(problem)


def test_parameters_without_gradients_stay(problem):
    solver = fresh()
    solver.timestep_logits.requires_grad_(False)
    trained(problem, solver=solver, settings={"iterations": 3})
    assert torch.equal(solver.timestep_logits, fresh().timestep_logits)
    assert (solver.data_corrections != 0).any()


@pytest.mark.parametrize("wrap", [lambda c: c, lambda c: {"label": c}, lambda c: (None, [c])])
def test_condition_must_have_one_entry_per_sample(problem, wrap):
    noise, target, condition = problem
    with pytest.raises(ValueError, match="one entry per sample"):
        trained((noise, target, wrap(condition[:-1])))


def moves(problem, **settings):
    """Return how far one training moved each parameter, as the largest absolute change."""
    solver, _ = trained(problem, settings=settings)
    start = dict(fresh().named_parameters())
    return {
        name: (value - start[name]).abs().max().item() if value.numel() else 0.0
        for name, value in solver.named_parameters()
    }


def test_clipping_bounds_the_first_adam_moment(problem):
    assert max(moves(problem, iterations=1, clip=1e-30, ema=0.0).values()) < 1e-9


def test_rates_belong_to_their_parameters(problem):
    def moved(**rates):
        zero = {"time_rate": 0.0, "offset_rate": 0.0, "coefficient_rate": 0.0}
        changes = moves(problem, iterations=3, ema=0.0, **{**zero, **rates})
        return {name for name, change in changes.items() if change > 0}

    assert moved(time_rate=1e-2) == {"timestep_logits"}
    assert moved(offset_rate=1e-2) == {"time_offsets"}
    assert moved(coefficient_rate=1e-2) == {"data_corrections", "state_corrections"}


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        # Adam's first step has the size of its rate: a tenth of it at the start of a warm-up of ten.
        ({"warmup": 0, "ema": 0.0}, 1e-2),
        ({"warmup": 10, "ema": 0.0}, 1e-3),
        # At first the decay is (i + 1) / (i + 10) = 0.1, so the average gets nine tenths of the first step.
        ({"warmup": 0, "ema": 0.9}, 9e-3),
    ],
)
def test_warm_up_and_average_scale_the_first_step(problem, settings, change):
    settings = {"iterations": 1, "optimizer": "adam", "offset_rate": 1e-2, **settings}
    assert moves(problem, **settings)["time_offsets"] == pytest.approx(change, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [2, 3])
def test_accumulation_gives_the_same_solver_up_to_rounding(problem, parts):
    whole, split = (
        trained(problem, settings={"iterations": 10, "batch_size": 7, "accumulation": accumulation})[0]
        for accumulation in (1, parts)
    )
    assert close(whole, split, 1e-9)


@pytest.mark.parametrize("num_classes", [0, 3])
def test_an_adversary_is_trained_too(problem, num_classes):
    noise, target, condition = problem
    signals = (noise[..., None], target[..., None], condition)
    options = {"width": 4, "num_classes": num_classes}

    def run():
        discriminator = build_discriminator("convolution", (6, 1), seed=0, **options)
        adversary = Adversary(discriminator, rate=1e-3, weight=0.1)
        return *trained(signals, settings={"iterations": 5}, adversary=adversary), discriminator

    (first, summary, discriminator), (again, again_summary, _) = run(), run()
    assert not same(discriminator, build_discriminator("convolution", (6, 1), seed=0, **options))
    assert summary.losses == again_summary.losses
    assert same(first, again)


def test_the_caller_s_random_numbers_stay(problem):
    state = torch.get_rng_state()
    trained(problem, settings={"iterations": 2})
    assert torch.equal(torch.get_rng_state(), state)


def test_recomputation_changes_no_bit(problem):
    stored, recomputed = (
        trained(problem, settings={"iterations": 3, "recompute": recompute})[0] for recompute in (False, True)
    )
    assert same(stored, recomputed)
