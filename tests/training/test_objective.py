"""Losses and gradients in parts: the same as of one batch, and as written out plainly."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from mixture import SCHEDULE, mixture_denoiser
from toy_run import randn, same

from gas_ext import GASSampler, GeneralizedSolver
from gas_ext.denoisers import Denoiser
from gas_ext.samples import SampleBatch
from gas_ext.training.adversarial import Adversary, discriminator_loss
from gas_ext.training.discriminators import TeacherView, build_discriminator
from gas_ext.training.learner import split_batch
from gas_ext.training.losses import l1_loss
from gas_ext.training.objective import Objective

FRESH = randn(6, 2, 8, seed=1)


def make_batch(dtype=torch.float64):
    noise = randn(6, 2, 8, dtype=dtype)
    return SampleBatch(noise, noise.sign(), torch.arange(6) % 3, None, None)


def make_objective(adversary=None, network=mixture_denoiser, distance=l1_loss, **options):
    solver = GeneralizedSolver(SCHEDULE, 3, timesteps="logsnr")
    return Objective(GASSampler(solver, network), distance, adversary=adversary, **options)


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
    parameters = list(objective.sampler.solver.parameters())
    means = objective.student_gradients(parts, parameters)
    return means, [parameter.grad for parameter in parameters]


@pytest.mark.parametrize("parts", [2, 3, 4, 6])
def test_parts_of_a_batch_give_the_gradient_of_the_whole(parts):
    batch = make_batch()
    whole, expected = gradients(make_objective(), [batch])
    means, values = gradients(make_objective(), split_batch(batch, parts))
    assert means.numbers == pytest.approx(whole.numbers, rel=1e-12)
    assert means.finite
    for value, gradient in zip(values, expected, strict=True):
        assert torch.allclose(value, gradient, rtol=1e-10, atol=1e-14)


@pytest.mark.slow
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
def test_an_iteration_of_gas_is_the_paper_s(parts, num_classes, view, loss):
    """The discriminator's step on fresh fakes, then the student's loss with the updated discriminator."""
    batch = make_batch()
    labels = batch.condition if num_classes else None
    options = {"num_classes": num_classes, "view": view, "loss": loss}
    adversary, twin = make_adversary(**options), make_adversary(**options)
    objective, sampler = make_objective(adversary, labels=bool(num_classes)), make_objective().sampler
    noises = [part.noise for part in split_batch(batch._replace(noise=FRESH), parts)]
    taught = objective.teach_discriminator(split_batch(batch, parts), noises).numbers
    means, values = gradients(objective, split_batch(batch, parts))

    discriminator = twin.discriminator
    with torch.no_grad():
        fake = twin.show(sampler(FRESH, batch.condition), batch.condition)
        real = twin.show(batch.samples, batch.condition)
    first = discriminator_loss(discriminator, real, fake, labels, gamma=0.2, loss=loss)
    first.total.mean().backward()
    torch.optim.Adam(discriminator.parameters(), lr=1e-2).step()
    samples = sampler(batch.noise, batch.condition)
    difference = discriminator(twin.show(samples, batch.condition), labels)
    if loss == "relativistic":
        difference = difference - discriminator(real, labels)
    distance, adversarial = l1_loss(samples, batch.samples), F.softplus(-difference).mean()
    (distance + 0.3 * adversarial).backward()

    for value, expected in zip(adversary.discriminator.parameters(), discriminator.parameters(), strict=True):
        assert torch.allclose(value, expected, rtol=0, atol=1e-10)
    for value, parameter in zip(values, sampler.solver.parameters(), strict=True):
        assert torch.allclose(value, parameter.grad, rtol=1e-8, atol=1e-12)
    student = {"loss": distance + 0.3 * adversarial, "distance": distance, "adversarial": adversarial}
    assert means.numbers == pytest.approx({name: value.item() for name, value in student.items()}, rel=1e-8)
    expected = {
        "discriminator": first.total,
        "discriminator_adversarial": first.adversarial,
        "r1": first.r1,
        "r2": first.r2,
        "real_logit": first.real_logits,
        "fake_logit": first.fake_logits,
    }
    assert taught == pytest.approx({name: v.mean().item() for name, v in expected.items()}, rel=1e-9)


def test_the_discriminator_learns_first_and_from_fresh_noise():
    seen = []

    def network(x, t, condition):
        seen.append((x.clone(), torch.is_grad_enabled()))
        return mixture_denoiser(x, t, condition)

    adversary = make_adversary()
    before = copy.deepcopy(adversary.discriminator)
    objective, batch = make_objective(adversary, network), make_batch()
    objective.teach_discriminator([batch], [FRESH])
    assert torch.equal(seen[0][0], FRESH)
    assert not any(enabled for _, enabled in seen)
    assert not same(before, adversary.discriminator)
    gradients(objective, [batch])
    assert torch.equal(seen[3][0].detach(), batch.noise)
    assert all(parameter.grad is None for parameter in adversary.discriminator.parameters())


def test_values_that_are_not_finite_are_reported():
    batch = make_batch()
    batch.samples[5, 0, 0] = math.nan
    means, _ = gradients(make_objective(), split_batch(batch, 3))
    assert not means.finite
    assert math.isnan(means.numbers["loss"])


def test_a_gradient_that_is_not_finite_is_reported():
    objective = make_objective(
        distance=lambda samples, target: (samples - samples.detach()).abs().sqrt().sum()
    )
    means, _ = gradients(objective, [make_batch()])
    assert means.numbers["loss"] == 0
    assert not means.finite


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

    objective = make_objective(network=network, autocast=dtype, distance=loss)
    _, values = gradients(objective, [make_batch(torch.float32)])
    assert network.dtypes == {dtype}
    assert seen == [torch.float32]
    for value, gradient in zip(values, expected, strict=True):
        assert torch.allclose(value, gradient, rtol=0.05, atol=0.02 * gradient.abs().max().item())
        assert not torch.equal(value, gradient)


def test_the_gradient_of_a_mean_over_many_numbers_does_not_underflow_in_float16():
    # As small as the mean over 2^27 numbers makes it, beyond float16's smallest number, 2^-24.
    network = SmallNetwork().requires_grad_(False)
    noise = randn(2, 2, 2**10, dtype=torch.float32)
    values = [
        gradients(
            make_objective(
                network=network, autocast=autocast, distance=lambda x, y: 2.0**-15 * l1_loss(x, y)
            ),
            [SampleBatch(noise, noise.sign(), None, None, None)],
        )[1]
        for autocast in (None, torch.float16)
    ]
    for expected, value in zip(*values, strict=True):
        assert expected.abs().max() > 0 or expected.numel() == 0
        assert torch.allclose(value, expected, rtol=0.01, atol=0.01 * value.abs().max().item())


def test_images_are_compared_if_there_are_any():
    batch = make_batch()
    batch = batch._replace(images=3.0 * batch.samples)
    objective = make_objective(decode=lambda samples: 3.0 * samples)
    samples = randn(6, 2, 8, seed=4)
    expected = 3.0 * l1_loss(samples, batch.samples).item()
    assert objective.distance(samples, batch).item() == pytest.approx(expected)
