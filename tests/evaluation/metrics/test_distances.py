import pytest
import torch

from gas_ext.evaluation.metrics import (
    l1_distance,
    l1_distances,
    l2_distance,
    l2_distances,
    perceptual_distances,
    psnr,
    psnr_values,
)
from gas_ext.training.losses import PerceptualLoss, l2_loss


@pytest.fixture
def pair():
    return torch.rand(2, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_means_are_means_of_samples(pair):
    a, b = pair
    assert l1_distance(a, b) == pytest.approx(float((a - b).abs().mean()), rel=1e-6)
    assert l1_distances(a, b).mean().item() == pytest.approx(l1_distance(a, b), rel=1e-12)
    assert l2_distance(a, b) == pytest.approx(l2_loss(a, b).item(), rel=1e-6)
    assert l2_distances(a, b).mean().item() == pytest.approx(l2_distance(a, b), rel=1e-12)
    assert psnr_values(a, b).mean().item() == psnr(a, b)


@pytest.mark.parametrize("metric", [l1_distances, l2_distances, psnr_values])
def test_samples_are_independent(pair, metric):
    a, b = pair
    alone = torch.cat([metric(x[None], y[None]) for x, y in zip(a, b, strict=True)])
    torch.testing.assert_close(metric(a, b), alone, rtol=1e-12, atol=0)
    assert metric(a, b).shape == (3,)


def test_psnr_agrees_with_torchmetrics(pair):
    functional = pytest.importorskip("torchmetrics.functional.image")
    a, b = pair
    expected = functional.peak_signal_noise_ratio(a, b, data_range=2.0, reduction="none", dim=(1, 2, 3))
    torch.testing.assert_close(psnr_values(a, b).float(), expected)
    assert psnr(a, a) == float("inf")


def test_perceptual_is_the_loss_of_each_pair(pair):
    def maps(images):
        return [images.expand(-1, 3, -1, -1), images.unfold(2, 2, 2).mean(dim=4).expand(-1, 2, -1, -1) ** 2]

    a, b = pair
    found = perceptual_distances(a, b, maps)
    alone = [PerceptualLoss(maps)(x[None], y[None]).item() for x, y in zip(a, b, strict=True)]
    assert found.tolist() == pytest.approx(alone, rel=1e-6)
    assert found.mean().item() == pytest.approx(PerceptualLoss(maps)(a, b).item(), rel=1e-6)
    assert not found.requires_grad


@pytest.mark.parametrize(
    "metric",
    [
        *(l1_distance, l1_distances, l2_distance, l2_distances, psnr),
        lambda a, b: perceptual_distances(a, b, lambda images: [images]),
    ],
)
def test_other_shapes_are_rejected(pair, metric):
    a, b = pair
    with pytest.raises(ValueError, match="shape"):
        metric(a, b[:1])
