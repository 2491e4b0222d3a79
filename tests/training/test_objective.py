"""Losses and gradients in parts: the same as of one batch, and as written out plainly."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from mixture import SCHEDULE, mixture_denoiser

from gas_ext import GASSampler, GeneralizedSolver
from gas_ext.denoisers import Denoiser
from gas_ext.training.adversarial import Adversary, discriminator_loss
from gas_ext.training.batches import Batch
from gas_ext.training.discriminators import TeacherView, build_discriminator
from gas_ext.training.losses import l1_loss
from gas_ext.training.objective import Objective


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def make_batch(dtype=torch.float64, labels=None):
    noise = randn(6, 2, 8, dtype=dtype)
    return Batch(
        noise,
        noise.sign(),
        torch.arange(6) % 3,
        fresh_noise=randn(6, 2, 8, seed=1, dtype=dtype),
        labels=labels,
    )


def make_objective(adversary=None, network=mixture_denoiser, **options):
    solver = GeneralizedSolver(SCHEDULE, 3, timesteps="logsnr")
    return Objective(GASSampler(solver, network), l1_loss, adversary=adversary, **options)


def make_adversary(view=None, loss="relativistic", **options):
    shape = (2, 8) if view is None else view.sample_shape
    discriminator = build_discriminator("convolution", shape, seed=0, width=4, **options).double()
    return Adversary(discriminator, rate=1e-2, weight=0.3, gamma=0.2, loss=loss, view=view)


def make_view():
    teacher = Denoiser.from_callable(
        mixture_denoiser,
        schedule=SCHEDULE,
        prediction_type="sample",
        sample_shape=(2, 8),
        condition_kind="tensor",
    )
    return TeacherView(teacher, [0.2])


def gradients(objective, parts):
    wanted = list(objective.sampler.solver.parameters())
    found = objective.student_gradients(parts, wanted)
    return found, [parameter.grad for parameter in wanted]


@pytest.mark.parametrize("parts", [2, 3, 4, 6])
def test_parts_of_a_batch_give_the_gradient_of_the_whole(parts):
    batch = make_batch()
    whole, expected = gradients(make_objective(), [batch])
    found, values = gradients(make_objective(), batch.split(parts))
    assert found.numbers == pytest.approx(whole.numbers, rel=1e-12)
    assert found.finite
    for value, wanted in zip(values, expected, strict=True):
        assert torch.allclose(value, wanted, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize(
    ("num_classes", "view", "loss"),
    [
        (0, None, "relativistic"),
        (3, None, "relativistic"),
        (0, make_view(), "relativistic"),
        (3, None, "gan"),
    ],
)
def test_an_iteration_of_gas_is_what_the_paper_says(parts, num_classes, view, loss):
    """The discriminator's step on fresh fakes, then the student's loss against what it has become."""
    batch = make_batch(labels=torch.arange(6) % 3 if num_classes else None)
    options = {"num_classes": num_classes, "view": view, "loss": loss}
    own, twin = make_adversary(**options), make_adversary(**options)
    objective, sampler = make_objective(own), make_objective().sampler
    taught = objective.teach_discriminator(batch.split(parts)).numbers
    found, values = gradients(objective, batch.split(parts))

    discriminator = twin.discriminator
    with torch.no_grad():
        fake, real = sampler(batch.fresh_noise, batch.condition), twin.show(batch.target, batch.condition)
        fake = twin.show(fake, batch.condition)
    first = discriminator_loss(discriminator, real, fake, batch.labels, gamma=0.2, loss=loss)
    first.total.mean().backward()
    torch.optim.Adam(discriminator.parameters(), lr=1e-2).step()
    samples = sampler(batch.noise, batch.condition)
    shown = twin.show(samples, batch.condition)
    difference = discriminator(shown, batch.labels)
    if loss == "relativistic":
        difference = difference - discriminator(real, batch.labels)
    distance, adversarial = l1_loss(samples, batch.target), F.softplus(-difference).mean()
    (distance + 0.3 * adversarial).backward()

    for value, expected in zip(own.discriminator.parameters(), discriminator.parameters(), strict=True):
        assert torch.allclose(value, expected, rtol=0, atol=1e-10)
    for value, parameter in zip(values, sampler.solver.parameters(), strict=True):
        assert torch.allclose(value, parameter.grad, rtol=1e-8, atol=1e-12)
    assert found.numbers["loss"] == pytest.approx((distance + 0.3 * adversarial).item(), rel=1e-9)
    assert found.numbers["distance"] == pytest.approx(distance.item(), rel=1e-9)
    assert found.numbers["adversarial"] == pytest.approx(adversarial.item(), rel=1e-8)
    for name, value in (
        ("discriminator", first.total),
        ("discriminator_adversarial", first.adversarial),
        ("r1", first.r1),
        ("r2", first.r2),
        ("real_logit", first.real_logits),
        ("fake_logit", first.fake_logits),
    ):
        assert taught[name] == pytest.approx(value.mean().item(), rel=1e-9)


def test_the_discriminator_learns_first_and_from_fresh_noise():
    seen = []

    def network(x, t, condition):
        seen.append((x.clone(), torch.is_grad_enabled()))
        return mixture_denoiser(x, t, condition)

    adversary = make_adversary()
    before = copy.deepcopy(adversary.discriminator)
    objective, batch = make_objective(adversary, network), make_batch()
    objective.teach_discriminator([batch])
    assert torch.equal(seen[0][0], batch.fresh_noise)
    assert not any(enabled for _, enabled in seen)
    assert any(
        not torch.equal(p, q)
        for p, q in zip(before.parameters(), adversary.discriminator.parameters(), strict=True)
    )
    gradients(objective, [batch])
    assert torch.equal(seen[3][0].detach(), batch.noise)
    assert all(parameter.grad is None for parameter in adversary.discriminator.parameters())


def test_a_discriminator_whose_gradient_is_not_finite_stays():
    adversary = make_adversary()
    before = copy.deepcopy(adversary.discriminator.state_dict())
    batch = make_batch()
    batch.fresh_noise[0, 0, 0] = math.nan
    found = make_objective(adversary).teach_discriminator(batch.split(2))
    assert not found.finite
    assert adversary.rejected == 1
    assert all(
        torch.equal(before[name], value) for name, value in adversary.discriminator.state_dict().items()
    )


def test_what_is_not_finite_is_told():
    batch = make_batch()
    batch.target[5, 0, 0] = math.nan
    found, _ = gradients(make_objective(), batch.split(3))
    assert not found.finite
    assert math.isnan(found.numbers["loss"])


class SmallNetwork(torch.nn.Module):
    """A convolution, which autocast computes in half precision."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv1d(2, 2, 3, padding=1)
        with torch.no_grad():
            self.layer.weight.copy_(0.3 * randn(2, 2, 3, dtype=torch.float32))
        self.dtypes = set()

    def forward(self, x, t, condition):
        output = self.layer(x)
        self.dtypes.add(output.dtype)
        return output


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_for_the_network_alone(dtype):
    network = SmallNetwork()
    _, expected = gradients(make_objective(network=network), [make_batch(torch.float32)])
    assert network.dtypes == {torch.float32}
    network.dtypes.clear()
    seen = []

    def loss(samples, target):
        seen.append(samples.dtype)
        return l1_loss(samples, target)

    objective = make_objective(network=network, autocast=dtype)
    objective._distance = loss
    _, values = gradients(objective, [make_batch(torch.float32)])
    assert network.dtypes == {dtype}
    assert seen == [torch.float32]
    for value, wanted in zip(values, expected, strict=True):
        assert torch.allclose(value, wanted, rtol=0.05, atol=0.02 * wanted.abs().max().item())
        assert not torch.equal(value, wanted)


def test_the_gradient_of_a_mean_over_many_numbers_does_not_underflow_in_float16():
    # As small as the mean over 2^27 numbers makes it, beyond float16's smallest number, 2^-24.
    network = SmallNetwork().requires_grad_(False)
    noise = randn(2, 2, 2**10, dtype=torch.float32)
    batch = Batch(noise, noise.sign())
    found = []
    for autocast in (None, torch.float16):
        objective = make_objective(network=network, autocast=autocast)
        objective._distance = lambda samples, target: 2.0**-15 * l1_loss(samples, target)
        found.append(gradients(objective, [batch])[1])
    for value, wanted in zip(*found, strict=True):
        assert wanted.abs().max() > 0 or wanted.numel() == 0
        assert torch.allclose(value, wanted, rtol=0.01, atol=0.01 * wanted.abs().max().item())


def test_images_are_compared_where_there_are_any():
    batch = make_batch()
    batch = Batch(batch.noise, batch.target, batch.condition, images=3.0 * batch.target)
    objective = make_objective(decode=lambda samples: 3.0 * samples)
    samples = randn(6, 2, 8, seed=4)
    assert objective.distance(samples, batch).item() == pytest.approx(
        3.0 * l1_loss(samples, batch.target).item()
    )
