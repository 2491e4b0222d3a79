import pytest
import torch

from gas_ext.evaluation.features import FeatureExtractor, to_bytes


def pixels(**options):
    return FeatureExtractor("pixels", 12, lambda images: images.flatten(1), **options)


def test_bytes_are_the_ones_that_are_saved():
    """As EDM and clean-fid's callers write pictures: (127.5 x + 128) clipped, then cut to uint8."""
    images = torch.linspace(-1.2, 1.2, 5001)
    expected = (images * 127.5 + 128).clamp(0, 255).to(torch.uint8)
    assert torch.equal(to_bytes(images), expected.float())
    # Bytes that are scaled to [-1, 1] come back as they were.
    bytes_ = torch.arange(256, dtype=torch.float32)
    assert torch.equal(to_bytes(bytes_ / 127.5 - 1), bytes_)


def test_quantization_is_seen_by_the_network():
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
    "images",
    [torch.zeros(3, 2, 2), torch.zeros(1, 4, 2, 2), torch.zeros(1, 3, 2, 2, dtype=torch.uint8)],
)
def test_what_is_no_image_is_refused(images):
    with pytest.raises(ValueError, match="pixels was given"):
        pixels()(images)


def test_features_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="expected \\(2, 12\\)"):
        pixels()(torch.zeros(2, 3, 4, 4))


def test_only_inception_gives_a_fid():
    assert pixels().frechet_name == "Frechet distance (pixels)"
    assert pixels(is_inception=True).frechet_name == "FID (pixels)"
    assert pixels(is_inception=True).describe()["kernel_name"] == "KID (pixels)"
