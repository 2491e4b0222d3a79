"""The feature network: independent of the batch, smooth, and sensitive to the errors of samplers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gas_ext.evaluation.metrics import feature_statistics, frechet_distance
from gas_ext.teachers import DemoFeatures, load_demo_features, load_demo_teacher
from gas_ext.training.losses import PerceptualLoss


@pytest.fixture(scope="module")
def features() -> DemoFeatures:
    return load_demo_features()


@pytest.fixture(scope="module")
def images() -> Tensor:
    """100 clothes, ten of each class: the teacher's predictions from little noise on its own guesses."""
    teacher = load_demo_teacher()
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(100) % 10
    x = torch.randn(100, 1, 32, 32, generator=generator)
    with torch.no_grad():
        for t in (1.0, 0.5, 0.25):
            time = torch.tensor(t, dtype=torch.float64)
            alpha, sigma = teacher.schedule.alpha(time).float(), teacher.schedule.sigma(time).float()
            if t < 1:
                x = alpha * x + sigma * torch.randn(x.shape, generator=generator)
            x = teacher(x, time, labels)
    return x.clamp(-1, 1)


def test_it_is_frozen_and_accurate(features: DemoFeatures) -> None:
    assert features.name == "fashion-cnn-64"
    assert not any(p.requires_grad for p in features.parameters())
    assert 0.9 < features.test_accuracy < 1


@pytest.mark.slow
def test_each_sample_is_independent_of_its_batch(features: DemoFeatures, images: Tensor) -> None:
    alone = torch.cat([features(image[None]) for image in images[:5]])
    torch.testing.assert_close(features(images[:5]), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_distances_grow_with_noise(features: DemoFeatures, images: Tensor) -> None:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    mean, covariance, _ = feature_statistics(features(images))
    perceptual = PerceptualLoss(features.feature_maps)
    frechet, distance = [], []
    for level in (0.0, 0.05, 0.1, 0.2, 0.4):
        noisy = images + level * noise
        frechet.append(frechet_distance(mean, covariance, *feature_statistics(features(noisy))[:2]))
        distance.append(perceptual(noisy, images).item())
    assert frechet == sorted(frechet)
    assert distance == sorted(distance)
    assert frechet[0] < 1e-3 < frechet[1]
    assert distance[0] == 0 < distance[1]


@pytest.mark.slow
def test_distance_grows_when_classes_are_lost(features: DemoFeatures, images: Tensor) -> None:
    mean, covariance, _ = feature_statistics(features(images))
    labels = torch.arange(100) % 10
    distances = []
    for classes in (10, 7, 4, 1):
        found = feature_statistics(features(images[labels < classes]))
        distances.append(frechet_distance(mean, covariance, *found[:2]))
    assert distances == sorted(distances)
    assert distances[1] > 1e-2


def test_perceptual_distance_has_image_gradients(features: DemoFeatures, images: Tensor) -> None:
    moved = (images[:4] + 0.1).requires_grad_()
    PerceptualLoss(features.feature_maps)(moved, images[:4]).backward()
    assert moved.grad is not None
    assert moved.grad.isfinite().all()
    assert moved.grad.abs().amax(dim=(1, 2, 3)).min() > 0
