import copy
import math

import pytest
import torch
import torch.nn.functional as F
from golden_data import GOLDEN, arrays, fill, index, knots, network_of, note, tensor
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from toy_run import randn, same

from gas_ext import GASSampler, GeneralizedSolver
from gas_ext.samples import SampleBatch
from gas_ext.training.adversarial import (
    ADVERSARIAL_LOSSES,
    AdversarialLoss,
    Adversary,
    discriminator_loss,
    get_adversarial_loss,
    gradient_penalty,
)
from gas_ext.training.discriminators import R3GANConfig, R3GANDiscriminator, build_discriminator
from gas_ext.training.discriminators.snapshots import config_of, readable_state_dict
from gas_ext.training.losses import l1_loss
from gas_ext.training.objective import Objective

WEIGHTS = GOLDEN / "disc" / "latent_4_scaled16.safetensors"
SMALL = R3GANConfig(widths=(2, 3), cardinalities=(2, 1), blocks=(1, 1), num_classes=2, embedding_dim=2)


def small_r3gan(shape=(2, 4, 4), config=SMALL):
    discriminator = R3GANDiscriminator(shape, config).double()
    for seed, parameter in enumerate(discriminator.parameters()):
        parameter.data = 0.5 * randn(*parameter.shape, seed=seed)
    return discriminator


def teach(adversary, real, fake, labels=None):
    """Make one step of the discriminator as in training; the fakes of this student are its noise."""
    objective = Objective(
        lambda noise, *conditions: noise, l1_loss, adversary=adversary, labels=labels is not None
    )
    return objective.teach_discriminator([SampleBatch(real, real, labels, None, None)], [fake])


# Golden data


def golden_discriminator(channels: int, dtype: torch.dtype) -> R3GANDiscriminator:
    weights = load_file(WEIGHTS)
    weights["ExtractionLayer.Layer.weight"] = weights["ExtractionLayer.Layer.weight"][:, :channels]
    weights = readable_state_dict(weights)
    discriminator = R3GANDiscriminator((channels, 64, 64), config_of(weights))
    discriminator.load_state_dict(weights)
    return discriminator.to(dtype)


def readable(name: str) -> str:
    return next(iter(readable_state_dict({name: torch.empty(0)})))


def relative(found: torch.Tensor, expected) -> float:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    return ((found.detach().double() - expected).abs().max() / expected.abs().max()).item()


PRECISIONS = [("f64", torch.float64, 1e-9), ("f32", torch.float32, 1e-5)]


@pytest.mark.slow
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize(("precision", "dtype", "limit"), PRECISIONS)
def test_golden_losses(channels, precision, dtype, limit, golden_record):
    name = f"disc/latent_{channels}_losses.npz"
    data, entry = arrays(name), index()["files"][name]
    discriminator = golden_discriminator(channels, dtype)
    real, fake = tensor(data["real"], dtype), tensor(data["fake"], dtype)

    def check(quantity, found, expected):
        error = relative(found, expected)
        note(golden_record, f"adversarial {precision}", quantity, error, name)
        assert error <= limit, quantity

    found = discriminator_loss(discriminator, real, fake, gamma=entry["gamma"])
    found.total.mean().backward()
    check("real logits", found.real_logits, data[f"{precision}/logits_real"])
    check("fake logits", found.fake_logits, data[f"{precision}/logits_fake"])
    check("D adversarial", found.adversarial, data[f"{precision}/D/adv"])
    check("D r1", found.r1, data[f"{precision}/D/r1"])
    check("D r2", found.r2, data[f"{precision}/D/r2"])
    check("D total", found.total, data[f"{precision}/D/loss"])
    norms = [discriminator.get_parameter(readable(name)).grad.norm() for name in entry["param_names"]]
    check("D gradient norms", torch.stack(norms), data[f"{precision}/D/grad_norms"])
    gradients = [key for key in data if key.startswith(f"{precision}/D/grad/")]
    assert gradients
    for key in gradients:
        parameter = discriminator.get_parameter(readable(key.removeprefix(f"{precision}/D/grad/")))
        check("D gradients", parameter.grad, data[key])
    plain = discriminator_loss(discriminator, real, fake, gamma=0)
    check("D without penalties", plain.total, data[f"{precision}/D/eval_loss"])

    fake.requires_grad_()
    loss = Adversary(discriminator).student_loss(fake, real)
    (gradient,) = torch.autograd.grad(loss.mean(), fake)
    check("student", loss, data[f"{precision}/G/loss"])
    if precision == "f32":
        check("student gradient", gradient, data["f32/G/grad_fake"])
    else:
        check("student gradient norm", gradient.norm(), data["f64/G/grad_fake_norm"])


@pytest.mark.slow
@pytest.mark.parametrize("channels", [3, 4])
def test_golden_discriminator_step(channels, golden_record):
    """One Adam step of rate 1e-3 moves the logits from 3.2 to 9."""
    data = arrays(f"disc/latent_{channels}_losses.npz")
    discriminator = golden_discriminator(channels, torch.float32)
    real, fake = torch.from_numpy(data["real"]), torch.from_numpy(data["fake"])
    teach(Adversary(discriminator, rate=1e-3), real, fake)
    error = relative(discriminator(real), data["f32/after_step_lr1e-3/logits_real"])
    note(golden_record, "adversarial f32", "logits after a step", error, str(channels))
    assert error <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 5e-5), (torch.float64, 5e-5)])
def test_golden_iteration(dtype, limit, golden_record):
    """Values and gradients of one iteration with guidance; the reference ran in float32."""
    data = arrays("disc/gas_forward_latent.npz")
    schedule = knots("ldm", "f32")
    network, prediction_type = network_of("eps_4", schedule, dtype)
    solver = GeneralizedSolver(schedule, steps=4, order=4, t_eps=1e-3)
    fill(solver, data, "param/", torch.float64)
    j = torch.arange(1, 9, dtype=torch.float64)
    contexts = [torch.sin(0.1 * (k + 1) * j).float().to(dtype)[None, None] for k in (*data["labels"], 1000)]
    adversary = Adversary(golden_discriminator(4, dtype), rate=1e-3)
    noise, fresh, target = (tensor(data[name], dtype) for name in ("noise", "disc_noise", "latents"))
    batch = SampleBatch(noise, target, torch.cat(contexts[:2]), None, None)
    sampler = GASSampler(solver, network, prediction_type, 2.0)
    objective = Objective(sampler, l1_loss, adversary=adversary, unconditional_condition=contexts[2])
    with torch.no_grad():
        fake, samples = (objective.sample(x, batch.condition) for x in (fresh, noise))
    before = discriminator_loss(adversary.discriminator, target, fake)
    taught = objective.teach_discriminator([batch], [fresh]).numbers
    found = objective.student_gradients([batch], list(solver.parameters())).numbers
    pairs = {
        "samples": (samples[:, 0], data["out/latents_s_ch0"]),
        "distance": (found["distance"], data["out/loss_l1_latents"].mean()),
        "D adversarial": (before.adversarial, data["out/dis_loss_adv"]),
        "D logits' difference": (before.real_logits - before.fake_logits, data["out/dis_scores_fake"]),
        "D r1": (before.r1, data["out/dis_r1"]),
        "D r2": (before.r2, data["out/dis_r2"]),
        "mean D adversarial": (taught["discriminator_adversarial"], data["out/dis_loss_adv"].mean()),
        "mean D r1": (taught["r1"], data["out/dis_r1"].mean()),
        "mean D r2": (taught["r2"], data["out/dis_r2"].mean()),
        "student adversarial": (adversary.student_loss(samples, target), data["out/gen_loss_adv"]),
        "mean student adversarial": (found["adversarial"], data["out/gen_loss_adv"].mean()),
        "total": (found["loss"], data["out/loss_total"].mean()),
        "gradient of times": (solver.timestep_logits.grad, data["grad/mu_logit"]),
        "gradient of offsets": (solver.time_offsets.grad, data["grad/t_couple"]),
        "gradient of c": (solver.data_corrections.grad, data["grad/c"]),
        "gradient of a": (solver.state_corrections.grad, data["grad/a"]),
    }
    for quantity, (value, expected) in pairs.items():
        error = relative(torch.as_tensor(value), expected)
        note(golden_record, f"GAS iteration {dtype}".replace("torch.", ""), quantity, error, "")
        assert error <= limit, quantity


# Values


@examples(max_examples=30)
@given(
    st.lists(st.floats(-50, 50), min_size=1, max_size=4), st.lists(st.floats(-50, 50), min_size=4, max_size=4)
)
def test_losses_against_cross_entropy(fake, real):
    fake, real = torch.tensor(fake).double(), torch.tensor(real[: len(fake)]).double()

    def entropy(logits, truth):
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, truth), reduction="none")

    relativistic, gan = ADVERSARIAL_LOSSES["relativistic"], ADVERSARIAL_LOSSES["gan"]
    torch.testing.assert_close(relativistic.student(fake, real), entropy(fake - real, 1.0))
    torch.testing.assert_close(relativistic.discriminator(fake, real), entropy(real - fake, 1.0))
    torch.testing.assert_close(gan.student(fake, real), entropy(fake, 1.0))
    torch.testing.assert_close(gan.discriminator(fake, real), entropy(fake, 0.0) + entropy(real, 1.0))


def test_losses_by_name_or_as_objects():
    own = AdversarialLoss(student=lambda fake, real: -fake, discriminator=lambda fake, real: fake - real)
    assert get_adversarial_loss(own) is own
    parts = discriminator_loss(lambda x, labels: x.sum(1), torch.ones(2, 3), torch.zeros(2, 3), loss=own)
    assert parts.adversarial.tolist() == [-3.0, -3.0]
    with pytest.raises(ValueError, match=r"no adversarial loss 'hinge'; use one of relativistic, gan"):
        get_adversarial_loss("hinge")


def test_penalty_of_known_functions():
    x = randn(4, 3, 2).requires_grad_()
    torch.testing.assert_close(gradient_penalty(5 * x.flatten(1).sum(1), x), torch.full((4,), 150.0).double())
    squares = gradient_penalty(x.square().flatten(1).sum(1), x)
    torch.testing.assert_close(squares, 4 * x.square().flatten(1).sum(1))
    (gradient,) = torch.autograd.grad(squares.sum(), x)
    torch.testing.assert_close(gradient, 8 * x)


@pytest.mark.parametrize("gamma", [0.0, 0.2, 3.0])
def test_parts_add_up(gamma):
    discriminator = small_r3gan()
    real, fake = randn(2, 3, 2, 4, 4)
    labels = torch.tensor([0, 1, 2])
    parts = discriminator_loss(discriminator, real, fake, labels, gamma=gamma)
    torch.testing.assert_close(parts.real_logits, discriminator(real, labels))
    torch.testing.assert_close(parts.adversarial, F.softplus(parts.fake_logits - parts.real_logits))
    torch.testing.assert_close(parts.total, parts.adversarial + 0.5 * gamma * (parts.r1 + parts.r2))
    assert bool((parts.r1 > 0).all()) == bool((parts.r2 > 0).all()) == (gamma > 0)


def test_gradients_reach_no_sample():
    real, fake = (randn(3, 2, 4, 4, seed=seed).requires_grad_() for seed in (0, 1))
    discriminator_loss(small_r3gan(), real, fake).total.mean().backward()
    assert real.grad is fake.grad is None


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 3\) and fakes \(2, 4\); expected one shape"):
        discriminator_loss(lambda x, labels: x.sum(1), torch.zeros(2, 3), torch.zeros(2, 4))


# Derivatives, against differences


@pytest.mark.slow
@pytest.mark.parametrize("name", ["r3gan", "convolution"])
def test_penalty_gradcheck_in_the_samples(name):
    convolution = build_discriminator("convolution", (2, 5), seed=0, width=2)
    discriminator = {"r3gan": small_r3gan(), "convolution": convolution}[name].double()
    x = randn(2, *discriminator.sample_shape, seed=3).requires_grad_()
    curved = Softened(discriminator)

    def penalty(samples):
        return gradient_penalty(curved(samples), samples)

    assert penalty(x).min() > 1e-5
    assert torch.autograd.gradcheck(penalty, x)
    assert torch.autograd.gradgradcheck(penalty, x)


class Softened(nn.Module):
    """A discriminator is piecewise linear in its sample; a squared logit has a second derivative."""

    def __init__(self, discriminator):
        super().__init__()
        self.discriminator = discriminator

    def forward(self, samples, labels=None):
        return self.discriminator(samples, labels).square()


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["relativistic", "gan"])
def test_discriminator_loss_gradcheck_in_the_parameters(loss):
    discriminator = small_r3gan()
    real, fake = randn(2, 2, 2, 4, 4, seed=1)
    labels = torch.tensor([0, 1])
    names = [name for name, _ in discriminator.named_parameters()]
    values = [parameter.detach().clone().requires_grad_() for parameter in discriminator.parameters()]

    def total(*parameters):
        def run(samples, labels):
            given_parameters = dict(zip(names, parameters, strict=True))
            return torch.func.functional_call(discriminator, given_parameters, (samples, labels))

        return discriminator_loss(run, real, fake, labels, gamma=0.7, loss=loss).total

    assert torch.autograd.gradcheck(total, values)
    assert torch.autograd.gradgradcheck(total, values, fast_mode=True)


def test_student_loss_gradcheck():
    adversary = Adversary(small_r3gan())
    fake, real = randn(2, 2, 2, 4, 4, seed=2)
    labels = torch.tensor([1, 2])
    assert torch.autograd.gradcheck(
        lambda x: adversary.student_loss(x, real, labels), fake.clone().requires_grad_()
    )


# The adversary


def test_update_is_a_step_of_adam():
    discriminator = small_r3gan()
    twin = copy.deepcopy(discriminator)
    real, fake = randn(2, 3, 2, 4, 4)
    labels = torch.tensor([0, 1, 2])
    adversary = Adversary(discriminator, rate=1e-2, betas=(0.5, 0.9), gamma=0.3)
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-2, betas=(0.5, 0.9))
    for _ in range(3):
        expected = discriminator_loss(twin, real, fake, labels, gamma=0.3)
        optimizer.zero_grad()
        expected.total.mean().backward()
        optimizer.step()
        found = teach(adversary, real, fake, labels)
        assert found.numbers["discriminator"] == pytest.approx(expected.total.mean().item(), rel=1e-15)
    assert same(discriminator, twin)
    assert all(parameter.grad is None for parameter in discriminator.parameters())
    assert adversary.rejected == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_not_finite_is_skipped(value):
    adversary = Adversary(small_r3gan(), rate=1e-2)
    real, fake = randn(2, 3, 2, 4, 4)
    teach(adversary, real, fake)
    state = copy.deepcopy(adversary.state_dict())
    fake[1, 0, 0, 0] = value
    teach(adversary, real, fake)
    assert adversary.rejected == 1
    for key, tensor_ in state["discriminator"].items():
        assert torch.equal(adversary.discriminator.state_dict()[key], tensor_)
    steps = {values["step"].item() for values in adversary.state_dict()["optimizer"].values()}
    assert steps == {1}


def test_student_loss_leaves_the_discriminator_alone():
    adversary = Adversary(small_r3gan())
    fake = randn(3, 2, 4, 4).requires_grad_()
    real = randn(3, 2, 4, 4, seed=1).requires_grad_()
    loss = adversary.student_loss(fake, real)
    expected = F.softplus(adversary.discriminator(real) - adversary.discriminator(fake))
    assert torch.equal(loss, expected)
    loss.mean().backward()
    assert fake.grad is not None
    assert real.grad is None
    assert all(parameter.grad is None for parameter in adversary.discriminator.parameters())
    assert all(parameter.requires_grad for parameter in adversary.discriminator.parameters())


@pytest.mark.parametrize("name", ["rate", "weight", "gamma"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_impossible_numbers_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}; expected a finite number of at least 0"):
        Adversary(small_r3gan(), **{name: value})


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["relativistic", "gan"])
def test_the_adversarial_term_alone_moves_a_student_to_its_teacher(loss):
    """Fakes are shifted noise; the shift finds the mean of the real samples."""
    generator = torch.Generator().manual_seed(0)
    shift = torch.zeros(1, requires_grad=True)
    discriminator = build_discriminator("convolution", (1, 8), seed=0, width=4)
    adversary = Adversary(discriminator, rate=1e-2, loss=loss, gamma=0.2)
    optimizer = torch.optim.Adam([shift], lr=2e-2, betas=(0.5, 0.9))
    tail = []
    for iteration in range(300):
        real = 1.0 + torch.randn(32, 1, 8, generator=generator)
        fake, fresh = torch.randn(2, 32, 1, 8, generator=generator)
        teach(adversary, real, (fresh + shift).detach())
        optimizer.zero_grad()
        adversary.student_loss(fake + shift, real).mean().backward()
        optimizer.step()
        if iteration >= 200:
            tail.append(shift.item())
    assert sum(tail) / len(tail) == pytest.approx(1.0, abs=0.25)
