import numpy as np
import pytest
import torch

from gas_ext.evaluation.features import FeatureExtractor, collect_features
from gas_ext.evaluation.metrics import feature_statistics

MEANS = FeatureExtractor("means", 3, lambda images: images.mean(dim=(2, 3)))


@pytest.fixture
def images():
    return torch.rand(10, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [1, 3, 10])
def test_batches_do_not_matter(images, tmp_path, size):
    expected = MEANS(images).numpy()
    np.testing.assert_array_equal(collect_features(images.split(size), MEANS, 10), expected)
    mapped = collect_features(iter(images.split(size)), MEANS, 10, tmp_path / "new" / "features.npy")
    assert isinstance(mapped, np.memmap)
    np.testing.assert_array_equal(mapped, expected)
    assert feature_statistics(mapped).size == 10
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["features.npy"]


@pytest.mark.parametrize(("count", "words"), [(9, "more than the 9"), (11, "11 were announced")])
def test_another_number_leaves_no_file(images, tmp_path, count, words):
    with pytest.raises(ValueError, match=words):
        collect_features(images.split(4), MEANS, count, tmp_path / "features.npy")
    assert list(tmp_path.iterdir()) == []
