import pytest
import torch
from torch import nn
from toy_run import same

from gas_ext.training.discriminators import (
    Discriminator,
    build_discriminator,
    discriminator_names,
    register_discriminator,
)
from gas_ext.training.discriminators.base import _REGISTRY


@pytest.fixture
def registry(monkeypatch):
    """Names registered in a test are forgotten after it."""
    monkeypatch.setattr("gas_ext.training.discriminators.base._REGISTRY", dict(_REGISTRY))


class Weighted(Discriminator):
    """Features are the first E entries of a sample, scaled."""

    def __init__(self, sample_shape, num_classes=0, embedding_dim=1):
        super().__init__(sample_shape, num_classes=num_classes, embedding_dim=embedding_dim)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.count = embedding_dim

    def features(self, samples):
        return self.scale * samples.flatten(1)[:, : self.count]


def test_names(registry):
    register_discriminator("weighted")(Weighted)
    assert {"convolution", "r3gan", "weighted"} <= set(discriminator_names())
    assert discriminator_names() == sorted(discriminator_names())
    assert Weighted.name == "weighted"
    assert isinstance(build_discriminator("weighted", (3, 4), num_classes=2), Weighted)


def test_a_name_belongs_to_one_class(registry):
    register_discriminator("weighted")(Weighted)
    register_discriminator("weighted")(Weighted)  # a notebook cell that runs again

    class Other(Weighted):
        pass

    with pytest.raises(ValueError, match="'weighted' exists already"):
        register_discriminator("weighted")(Other)


def test_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match=r"no discriminator 'vit'; use one of .*convolution.*r3gan"):
        build_discriminator("vit", (3, 8, 8))


def test_seed_decides_the_weights_and_leaves_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (build_discriminator("convolution", (1, 16), seed=s, width=4) for s in (3, 3, 4))
    assert torch.equal(torch.rand(1), expected)
    assert same(first, again)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_logits_sum_features_weighted_by_the_labels_embedding():
    discriminator = Weighted((5,), num_classes=3, embedding_dim=2)
    x = torch.arange(20.0).reshape(4, 5)
    features = 2 * x[:, :2]
    torch.testing.assert_close(discriminator(x), features.sum(1))
    labels = torch.tensor([2, 0, 3, 1])  # 3 means no label
    one_hot = torch.eye(4)[labels, :3]
    expected = (features * (one_hot @ discriminator.embedding.weight.T)).sum(1)
    expected[2] = features[2].sum()
    torch.testing.assert_close(discriminator(x, labels), expected)


def test_samples_are_computed_in_the_parameters_dtype():
    discriminator = Weighted((5,))
    assert discriminator(torch.ones(2, 5, dtype=torch.float64)).dtype == torch.float32
    assert discriminator.double()(torch.ones(2, 5)).dtype == torch.float64
    assert discriminator.device.type == "cpu"


@pytest.mark.parametrize("shape", [(), (3, 0), (-1, 4)])
def test_impossible_shapes(shape):
    with pytest.raises(ValueError, match="must be sizes of at least 1"):
        Weighted(shape)


def test_other_samples_are_refused():
    discriminator = Weighted((5,))
    for shape in ((5,), (2, 4), (2, 5, 1), ()):
        with pytest.raises(ValueError, match=r"was built for \(batch, 5\)"):
            discriminator(torch.zeros(shape))


def test_other_labels_are_refused():
    x = torch.zeros(2, 5)
    with pytest.raises(ValueError, match="takes no labels"):
        Weighted((5,))(x, torch.tensor([0, 1]))
    discriminator = Weighted((5,), num_classes=3)
    for labels in (torch.tensor([0.0, 1.0]), torch.tensor([0]), torch.tensor([[0], [1]])):
        with pytest.raises(ValueError, match=r"must be int64 \(2,\)"):
            discriminator(x, labels)
    for labels in ([0, 4], [-1, 0]):
        with pytest.raises(ValueError, match="must be 0 to 2, or 3 for no label"):
            discriminator(x, torch.tensor(labels))


def test_repr_has_name_and_shape():
    text = repr(build_discriminator("convolution", (2, 8), width=4))
    assert "'convolution', (2, 8), num_classes=0" in text
