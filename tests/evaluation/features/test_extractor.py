import numpy as np
import pytest
import torch

from gas_ext.evaluation.features import FeatureExtractor, collect_features, to_bytes

MEANS = FeatureExtractor("means", 3, lambda images: images.mean(dim=(2, 3)))


def pixels(**options):
    return FeatureExtractor("pixels", 12, lambda images: images.flatten(1), **options)


def test_bytes_are_those_of_saved_images():
    """As EDM and callers of clean-fid save images: (127.5 x + 128) clipped, then truncated to uint8."""
    images = torch.linspace(-1.2, 1.2, 5001)
    expected = (images * 127.5 + 128).clamp(0, 255).to(torch.uint8)
    assert torch.equal(to_bytes(images), expected.float())
    # Bytes that are scaled to [-1, 1] come back as they were.
    bytes_ = torch.arange(256, dtype=torch.float32)
    assert torch.equal(to_bytes(bytes_ / 127.5 - 1), bytes_)


def test_network_sees_quantized_images():
    image = torch.full((1, 3, 2, 2), 0.001)
    assert pixels()(image).unique().tolist() == pytest.approx([0.001])
    rounding = pixels(quantization="uint8")
    assert rounding(image).unique().tolist() == [128]
    assert rounding.truncated()(image).unique().tolist() == [127]
    assert rounding.truncated().describe()["quantization"] == "uint8-truncated"
    assert pixels().truncated().quantization == "none"


def test_nan_is_not_hidden_by_rounding():
    images = torch.zeros(2, 3, 2, 2)
    images[1, 0, 0, 0] = float("nan")
    for extractor in (pixels(quantization="uint8"), pixels(quantization="uint8-truncated")):
        found = extractor(images)
        assert torch.isfinite(found[0]).all()
        assert torch.isnan(found[1]).any()


def test_no_gradient_and_float32():
    images = torch.zeros(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    found = pixels()(images)
    assert found.dtype == torch.float32
    assert not found.requires_grad


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 2, 2), "The images for pixels are"),
        (torch.zeros(1, 4, 2, 2), "The images for pixels are"),
        (torch.zeros(1, 3, 2, 2, dtype=torch.uint8), "The images for pixels are"),
        (torch.zeros(2, 3, 4, 4), r"must have shape \(2, 12\)"),
    ],
)
def test_images_and_features_of_other_shapes_are_rejected(images, message):
    with pytest.raises(ValueError, match=message):
        pixels()(images)


def test_only_inception_gives_a_fid():
    assert pixels(weights_hash="ab").describe() == {
        "extractor": "pixels",
        "size": 12,
        "weights_sha256": "ab",
        "resize": "none",
        "quantization": "none",
        "input_range": "[-1, 1]",
        "frechet_name": "Frechet distance (pixels)",
        "kernel_name": "kernel distance (pixels)",
    }
    inception = pixels(is_inception=True)
    assert (inception.frechet_name, inception.kernel_name) == ("FID (pixels)", "KID (pixels)")


@pytest.fixture
def images():
    return torch.rand(10, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [1, 3, 10])
def test_collected_features_do_not_depend_on_the_batches(images, tmp_path, size):
    expected = MEANS(images).numpy()
    np.testing.assert_array_equal(collect_features(images.split(size), MEANS, 10), expected)
    mapped = collect_features(iter(images.split(size)), MEANS, 10, tmp_path / "new" / "features.npy")
    assert isinstance(mapped, np.memmap)
    np.testing.assert_array_equal(mapped, expected)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["features.npy"]


@pytest.mark.parametrize(("count", "message"), [(9, "more than 9 images"), (11, "10 images, but")])
def test_wrong_count_leaves_no_file(images, tmp_path, count, message):
    with pytest.raises(ValueError, match=message):
        collect_features(images.split(4), MEANS, count, tmp_path / "features.npy")
    assert list(tmp_path.iterdir()) == []
