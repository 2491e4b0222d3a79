import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from toy_run import randn

from gas_ext.training.discriminators import ConvolutionDiscriminator, build_discriminator


@examples(max_examples=40)
@given(
    st.integers(1, 5), st.lists(st.integers(1, 21), min_size=1, max_size=3), st.integers(1, 4), st.booleans()
)
def test_any_shape(channels, sizes, width, conditional):
    """One logit per sample, which does not depend on the other samples, with a gradient everywhere."""
    classes = 3 if conditional else 0
    discriminator = build_discriminator(
        "convolution", (channels, *sizes), seed=0, width=width, max_width=8, num_classes=classes
    ).double()
    x = randn(3, channels, *sizes).requires_grad_()
    labels = torch.tensor([0, 2, 3]) if conditional else None
    logits = discriminator(x, labels)
    assert logits.shape == (3,)
    alone = [discriminator(x[i : i + 1], labels if labels is None else labels[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(logits, torch.cat(alone))
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).abs().sum(1) > 0).all()
    # No axis is longer than the head expects.
    assert discriminator.head.in_features <= discriminator.layers[-1].out_channels * 4 ** len(sizes)


@pytest.mark.parametrize(("axes", "layer_type"), [(1, "Conv1d"), (2, "Conv2d"), (3, "Conv3d")])
def test_dimension_chooses_the_convolution(axes, layer_type):
    discriminator = ConvolutionDiscriminator((2, *[8] * axes), width=2)
    assert {type(layer).__name__ for layer in discriminator.layers} == {layer_type}


def test_widths_double_to_their_limit():
    discriminator = ConvolutionDiscriminator((1, 128), width=4, max_width=12)
    assert [layer.out_channels for layer in discriminator.layers] == [4, 8, 12, 12, 12, 12]


def test_logits_of_a_new_discriminator_are_of_order_one():
    logits = build_discriminator("convolution", (3, 32, 32), seed=0, width=16)(randn(64, 3, 32, 32).float())
    assert 0.1 < logits.std() < 3


@pytest.mark.parametrize("shape", [(3,), (3, 4, 4, 4, 4)])
def test_other_dimensions_are_refused(shape):
    with pytest.raises(ValueError, match="needs channels and one to three axes"):
        ConvolutionDiscriminator(shape)


@pytest.mark.parametrize("width", [0, 300])
def test_impossible_widths_are_refused(width):
    with pytest.raises(ValueError, match=f"width is {width}, but must be from 1 to max_width"):
        ConvolutionDiscriminator((3, 8), width=width)
