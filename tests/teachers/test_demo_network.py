"""The small denoiser: shapes, preconditioning, independence of the batch, gradients."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from gas_ext.teachers.demo_network import DemoNetwork, DemoNetworkConfig

SMALL = DemoNetworkConfig(
    image_size=16,
    channels=(16, 32),
    blocks=(1, 1),
    attention=(False, True),
    embedding_size=32,
    sigma_data=0.7,
)


@pytest.fixture(scope="module")
def denoiser() -> DemoNetwork:
    """A float64 network in which no layer is zero."""
    generator = torch.Generator().manual_seed(0)
    network = DemoNetwork(SMALL).double().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return network


def inputs(batch: int, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randn(batch, 1, 16, 16, generator=generator, dtype=torch.float64)
    sigma = torch.logspace(-2, 2, batch, dtype=torch.float64)
    return y * (1 + sigma[:, None, None, None]), sigma, torch.arange(batch) % 11


@pytest.mark.parametrize("channels", [1, 3])
def test_float32_and_other_channel_counts(channels: int) -> None:
    config = DemoNetworkConfig(
        image_channels=channels, image_size=16, channels=(16,), blocks=(1,), attention=(False,)
    )
    output = DemoNetwork(config)(torch.randn(2, channels, 16, 16), torch.ones(2), torch.tensor([0, 10]))
    assert output.shape == (2, channels, 16, 16)
    assert output.dtype == torch.float32


def test_an_untrained_network_returns_the_skip_term_alone() -> None:
    y, sigma, labels = inputs(4)
    skip = SMALL.sigma_data**2 / (SMALL.sigma_data**2 + sigma**2)
    output = DemoNetwork(SMALL).double()(y, sigma, labels)
    torch.testing.assert_close(output, skip[:, None, None, None] * y, rtol=1e-13, atol=0)


def test_without_noise_the_image_comes_back(denoiser: DemoNetwork) -> None:
    y, _, labels = inputs(4)
    for sigma in (1e-6, 1e-9, 1e-12):
        error = (denoiser(y, torch.full((4,), sigma, dtype=torch.float64), labels) - y).abs().max()
        assert error < 100 * sigma


def test_output_stays_bounded_at_high_noise(denoiser: DemoNetwork) -> None:
    noise = inputs(1)[0]
    for sigma in (1e2, 1e3, 1e4):
        output = denoiser(sigma * noise, torch.tensor([sigma], dtype=torch.float64), torch.tensor([3]))
        assert output.isfinite().all()
        assert output.abs().max() < 50


def test_each_sample_is_independent_of_its_batch(denoiser: DemoNetwork) -> None:
    y, sigma, labels = inputs(6)
    together = denoiser(y, sigma, labels)
    alone = torch.cat([denoiser(y[i : i + 1], sigma[i : i + 1], labels[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(together, alone, rtol=1e-11, atol=1e-11)


def test_label_and_noise_level_matter(denoiser: DemoNetwork) -> None:
    y, sigma, labels = inputs(3)
    base = denoiser(y, sigma, labels)
    assert (denoiser(y, sigma, torch.full_like(labels, 10)) - base).abs().amax(dim=(1, 2, 3)).min() > 1e-4
    assert (denoiser(y, 1.1 * sigma, labels) - base).abs().amax(dim=(1, 2, 3)).min() > 1e-4


def test_a_label_beyond_the_unconditional_one_is_refused(denoiser: DemoNetwork) -> None:
    y, sigma, _ = inputs(1)
    with pytest.raises(IndexError):
        denoiser(y, sigma, torch.tensor([11]))


def test_gradients_reach_image_and_noise_level(denoiser: DemoNetwork) -> None:
    y, sigma, labels = inputs(2)
    y, sigma = y.requires_grad_(), sigma.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: denoiser(y.detach(), s, labels).square().mean(), (sigma,))
    denoiser(y, sigma, labels).square().sum().backward()
    assert y.grad is not None
    assert y.grad.isfinite().all()
    assert y.grad.abs().max() > 0


def test_configuration_survives_json() -> None:
    assert DemoNetworkConfig.from_dict(json.loads(json.dumps(SMALL.to_dict()))) == SMALL
