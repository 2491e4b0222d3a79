import math

import pytest
import torch
from mixture import SCHEDULE, mixture_denoiser

from gas_ext import GASSampler, GeneralizedSolver
from gas_ext.training import TrainingConfig, train_solver
from gas_ext.training.baselines import classical_solver


@pytest.fixture(scope="module")
def problem():
    noise = torch.randn(96, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    condition = torch.arange(96) % 3
    with torch.no_grad():
        target = GASSampler(classical_solver(SCHEDULE, 64, 3, "logsnr").solver, mixture_denoiser)(
            noise, condition
        )
    return noise, target, condition


def fresh(steps=4):
    return GeneralizedSolver(SCHEDULE, steps, theory_order=2, timesteps="quadratic")


def distance(solver, noise, target, condition):
    with torch.no_grad():
        return (GASSampler(solver, mixture_denoiser)(noise, condition) - target).abs().mean().item()


@pytest.mark.parametrize("optimizer", ["full_adam", "adam"])
def test_learns_and_generalizes_to_held_out_samples(problem, optimizer):
    train, held_out = [part[:64] for part in problem], [part[64:] for part in problem]
    solver = fresh()
    before = distance(solver, *held_out)
    summary = train_solver(
        solver,
        mixture_denoiser,
        *train,
        config=TrainingConfig(iterations=80, batch_size=16, optimizer=optimizer),
    )
    assert distance(solver, *held_out) < 0.6 * before
    assert len(summary.losses) == 80
    assert summary.rejected == 0
    assert sum(summary.losses[-10:]) < 0.7 * sum(summary.losses[:10])


@pytest.mark.parametrize("loss", ["l2", "huber"])
def test_other_losses(problem, loss):
    solver = fresh()
    before = distance(solver, *problem)
    train_solver(solver, mixture_denoiser, *problem, config=TrainingConfig(iterations=40, loss=loss))
    assert distance(solver, *problem) < before


def test_loss_callable_is_used(problem):
    seen = []

    def loss(prediction, target):
        seen.append(prediction.shape)
        return (prediction - target).abs().max()

    train_solver(
        fresh(), mixture_denoiser, *problem, loss=loss, config=TrainingConfig(iterations=3, batch_size=5)
    )
    assert seen == [torch.Size([5, 6])] * 3


def test_same_seed_same_bits(problem):
    def run(seed):
        solver = fresh()
        summary = train_solver(
            solver, mixture_denoiser, *problem, config=TrainingConfig(iterations=12, batch_size=7, seed=seed)
        )
        return summary.losses, [p.detach().clone() for p in solver.parameters()]

    (losses_a, a), (losses_b, b), (losses_c, _) = run(3), run(3), run(4)
    assert losses_a == losses_b
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert losses_c != losses_a


def test_any_shape_and_a_single_step():
    noise = torch.randn(6, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    solver = fresh(steps=1)
    summary = train_solver(
        solver, mixture_denoiser, noise, noise.sign(), config=TrainingConfig(iterations=3, batch_size=100)
    )
    assert summary.samples == 6
    assert all(math.isfinite(loss) for loss in summary.losses)


def test_iteration_that_is_not_finite_is_skipped(problem):
    calls = 0

    def sometimes_nan(x, t, condition):
        nonlocal calls
        calls += 1
        return mixture_denoiser(x, t, condition) * (math.nan if 9 <= calls <= 12 else 1.0)

    solver = fresh()
    summary = train_solver(solver, sometimes_nan, *problem, config=TrainingConfig(iterations=6))
    assert summary.rejected == 1
    assert math.isnan(summary.losses[2])
    assert all(torch.isfinite(p).all() for p in solver.parameters())


def test_gives_up_and_restores_when_nothing_is_finite(problem):
    solver = fresh()
    before = [p.detach().clone() for p in solver.parameters()]
    with pytest.raises(RuntimeError, match="not finite in 10 iterations"):
        train_solver(solver, lambda x, t, c: x * math.nan, *problem, config=TrainingConfig(iterations=20))
    assert all(torch.equal(p, old) for p, old in zip(solver.parameters(), before, strict=True))


def test_interrupted_training_restores_the_solver(problem):
    solver = fresh()
    before = [p.detach().clone() for p in solver.parameters()]

    def stop(iteration, loss):
        if iteration == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_solver(solver, mixture_denoiser, *problem, progress=stop)
    assert all(torch.equal(p, old) for p, old in zip(solver.parameters(), before, strict=True))


def test_network_gets_no_gradient_and_keeps_its_flags(problem):
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
            self.fixed = torch.nn.Parameter(torch.ones((), dtype=torch.float64), requires_grad=False)

        def forward(self, x, t, condition):
            return self.scale * self.fixed * mixture_denoiser(x, t, condition)

    network = Network()
    train_solver(fresh(), network, *problem, config=TrainingConfig(iterations=2))
    assert network.scale.grad is None
    assert network.scale.requires_grad
    assert not network.fixed.requires_grad


def test_no_ema_returns_the_last_parameters_and_ema_an_average(problem):
    def run(ema):
        solver = fresh()
        train_solver(solver, mixture_denoiser, *problem, config=TrainingConfig(iterations=5, ema=ema))
        return solver.time_offsets.detach()

    start = torch.zeros(4, dtype=torch.float64)
    assert ((run(0.9) - start).abs() < (run(0.0) - start).abs()).any()


def test_progress_counts_from_one(problem):
    seen = []
    summary = train_solver(
        fresh(),
        mixture_denoiser,
        *problem,
        config=TrainingConfig(iterations=4),
        progress=lambda i, x: seen.append((i, x)),
    )
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
def test_gs_of_many_steps_learns_at_lower_rates(preset, steps, settings, factor):
    solver = GeneralizedSolver(SCHEDULE, steps, preset=preset, theory_guidance=preset != "s4s-alt")
    config = TrainingConfig(time_rate=1e-2, offset_rate=2e-2, coefficient_rate=3e-2, **settings)
    rates = [group["base_lr"] for group in config.make_optimizer(solver).param_groups]
    assert rates == pytest.approx([factor * rate for rate in (1e-2, 2e-2, 3e-2)][: len(rates)])
    assert len(rates) == (2 if preset == "ld3" else 3)


def test_clipping_bounds_the_first_adam_moment(problem):
    solver = fresh()
    train_solver(solver, mixture_denoiser, *problem, config=TrainingConfig(iterations=1, clip=1e-30, ema=0.0))
    moved = max(
        (p - q).abs().max().item() for p, q in zip(solver.parameters(), fresh().parameters(), strict=True)
    )
    assert moved < 1e-9


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("iterations", 0),
        ("batch_size", 0),
        ("warmup", -1),
        ("time_rate", -1.0),
        ("offset_rate", math.inf),
        ("coefficient_rate", math.nan),
        ("optimizer", "sgd"),
        ("schedule", "linear"),
        ("loss", "lpip"),
        ("ema", 1.0),
        ("clip", 0.0),
    ],
)
def test_settings_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        TrainingConfig(**{name: value})


def test_shapes_must_agree(problem):
    noise, target, _ = problem
    with pytest.raises(ValueError, match="one shape"):
        train_solver(fresh(), mixture_denoiser, noise, target[1:])


def test_summary_fits_a_file_header(problem):
    import json

    summary = train_solver(fresh(), mixture_denoiser, *problem, config=TrainingConfig(iterations=2))
    record = json.loads(json.dumps(summary.to_dict(), allow_nan=False))
    assert record["config"]["iterations"] == 2
    assert record["samples"] == 96
    assert record["first_loss"] == summary.losses[0]


class Linear(torch.nn.Module):
    """An epsilon network with one weight; its condition is one number per sample."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.4, dtype=torch.float64))

    def forward(self, x, t, condition):
        return self.weight * x + 0.1 * condition.view(-1, 1).to(x.dtype)


def test_saved_solver_samples_as_it_was_trained(problem, tmp_path):
    noise, _, condition = problem
    solver, network, empty = fresh(), Linear(), torch.zeros(1, dtype=torch.int64)
    summary = train_solver(
        solver,
        network,
        *problem,
        config=TrainingConfig(iterations=2),
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


def test_failed_training_records_nothing(problem):
    solver = fresh()
    with pytest.raises(RuntimeError, match="not finite"):
        train_solver(
            solver,
            lambda x, t, c: x * math.nan,
            *problem,
            prediction_type="epsilon",
            config=TrainingConfig(iterations=20),
        )
    assert solver.prediction_type is None
    assert solver.training_summary == {}


def test_unconditional_condition_reaches_the_network(problem):
    seen = []

    def network(x, t, c):
        seen.append(c)
        return mixture_denoiser(x, t, c)

    train_solver(
        fresh(),
        network,
        *problem,
        guidance_scale=2.0,
        unconditional_condition=torch.tensor([7]),
        config=TrainingConfig(iterations=1, batch_size=5),
    )
    assert all(len(c) == 10 and (c[:5] == 7).all() and (c[5:] < 3).all() for c in seen)


def test_network_inside_a_closure_gets_no_gradient(problem):
    network = Linear()
    train_solver(fresh(), lambda x, t, c: network(x, t, c), *problem, config=TrainingConfig(iterations=2))
    assert network.weight.grad is None


def test_solver_without_gradients_is_refused(problem):
    with pytest.raises(ValueError, match="requires_grad_"):
        train_solver(fresh().requires_grad_(False), mixture_denoiser, *problem)
    with torch.no_grad(), pytest.raises(ValueError, match="no_grad"):
        train_solver(fresh(), mixture_denoiser, *problem)


def test_parameters_without_gradients_stay(problem):
    solver = fresh()
    solver.timestep_logits.requires_grad_(False)
    before = solver.timestep_logits.clone()
    train_solver(solver, mixture_denoiser, *problem, config=TrainingConfig(iterations=3))
    assert torch.equal(solver.timestep_logits, before)
    assert (solver.data_corrections != 0).any()


@pytest.mark.parametrize("wrap", [lambda c: c, lambda c: {"label": c}, lambda c: (None, [c])])
def test_condition_must_have_one_entry_per_sample(problem, wrap):
    noise, target, condition = problem
    with pytest.raises(ValueError, match="one entry per sample"):
        train_solver(fresh(), mixture_denoiser, noise, target, wrap(condition[:-1]))


def moves(problem, **settings):
    """Return how far one training moved each parameter, as the largest absolute change."""
    solver = fresh()
    train_solver(solver, mixture_denoiser, *problem, config=TrainingConfig(**settings))
    return {
        name: (value - dict(fresh().named_parameters())[name]).abs().max().item()
        for name, value in solver.named_parameters()
    }


def test_rates_belong_to_their_parameters(problem):
    def moved(**rates):
        zero = {"time_rate": 0.0, "offset_rate": 0.0, "coefficient_rate": 0.0}
        found = moves(problem, iterations=3, ema=0.0, **{**zero, **rates})
        return {name for name, distance in found.items() if distance > 0}

    assert moved(time_rate=1e-2) == {"timestep_logits"}
    assert moved(offset_rate=1e-2) == {"time_offsets"}
    assert moved(coefficient_rate=1e-2) == {"data_corrections", "state_corrections"}


def test_schedule_scales_the_steps(problem):
    # Adam's first step has the size of its learning rate: a tenth of it at the start of a warm-up of ten.
    settings = {"iterations": 1, "ema": 0.0, "optimizer": "adam", "offset_rate": 1e-2}
    slow, full = (moves(problem, warmup=warmup, **settings)["time_offsets"] for warmup in (10, 0))
    assert full == pytest.approx(1e-2, rel=1e-3)
    assert slow == pytest.approx(1e-3, rel=1e-3)


def test_average_soon_forgets_the_start(problem):
    # At first the decay is (i + 1) / (i + 10) = 0.1, so nine tenths of the first step arrive.
    settings = {"iterations": 1, "warmup": 0, "optimizer": "adam", "offset_rate": 1e-2}
    assert moves(problem, ema=0.9, **settings)["time_offsets"] == pytest.approx(9e-3, rel=1e-3)


@pytest.mark.parametrize("parts", [2, 3])
def test_accumulation_gives_the_same_solver_up_to_rounding(problem, parts):
    found = []
    for accumulation in (1, parts):
        solver = fresh()
        config = TrainingConfig(iterations=10, batch_size=7, accumulation=accumulation)
        train_solver(solver, mixture_denoiser, *problem, config=config)
        found.append(list(solver.parameters()))
    assert all(torch.allclose(p, q, rtol=0, atol=1e-9) for p, q in zip(*found, strict=True))


def adversary(**options):
    from gas_ext.training.adversarial import Adversary
    from gas_ext.training.discriminators import build_discriminator

    return Adversary(
        build_discriminator("convolution", (6, 1), seed=0, width=4, **options), rate=1e-3, weight=0.1
    )


@pytest.mark.parametrize("num_classes", [0, 3])
def test_an_adversary_learns_along(problem, num_classes):
    noise, target, condition = problem
    runs = []
    for _ in range(2):
        solver, opponent = fresh(), adversary(num_classes=num_classes)
        before = [p.detach().clone() for p in opponent.discriminator.parameters()]
        summary = train_solver(
            solver,
            mixture_denoiser,
            noise[..., None],
            target[..., None],
            condition,
            adversary=opponent,
            config=TrainingConfig(iterations=5),
        )
        assert any(
            not torch.equal(p, q) for p, q in zip(before, opponent.discriminator.parameters(), strict=True)
        )
        runs.append((summary.losses, [p.detach() for p in solver.parameters()]))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(p, q) for p, q in zip(runs[0][1], runs[1][1], strict=True))


def test_the_caller_s_random_numbers_stay(problem):
    torch.manual_seed(3)
    expected = torch.randn(4)
    torch.manual_seed(3)
    train_solver(fresh(), mixture_denoiser, *problem, config=TrainingConfig(iterations=2))
    assert torch.equal(torch.randn(4), expected)


def test_recomputation_changes_no_bit(problem):
    found = []
    for recompute in (False, True):
        solver = fresh()
        config = TrainingConfig(iterations=3, recompute=recompute)
        train_solver(solver, mixture_denoiser, *problem, config=config)
        found.append(list(solver.parameters()))
    assert all(torch.equal(p, q) for p, q in zip(*found, strict=True))
