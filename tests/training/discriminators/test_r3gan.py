import dataclasses
import math

import pytest
import torch
from golden_data import GOLDEN, arrays, index, note, tensor
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from safetensors.torch import load_file
from toy_run import randn, same

from gas_ext.training.discriminators import R3GANConfig, R3GANDiscriminator, build_discriminator
from gas_ext.training.discriminators.snapshots import config_of, readable_state_dict

LATENT = GOLDEN / "disc" / "latent_4_scaled16.safetensors"
SMALL = R3GANConfig(widths=(4, 6), cardinalities=(2, 3), blocks=(2, 1))


def randomize(discriminator, scale=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in discriminator.parameters():
        parameter.data = scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return discriminator


@pytest.mark.slow
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("precision", ["f32", "f64", "bf16_stages012"])
def test_golden_logits_on_latents(channels, precision, golden_record):
    weights = load_file(LATENT)
    weights["ExtractionLayer.Layer.weight"] = weights["ExtractionLayer.Layer.weight"][:, :channels]
    weights = readable_state_dict(weights)
    config = config_of(weights)
    if precision.startswith("bf16"):
        config = dataclasses.replace(config, bfloat16_stages=(0, 1, 2))
    dtype = torch.float64 if precision == "f64" else torch.float32
    discriminator = R3GANDiscriminator((channels, 64, 64), config)
    discriminator.load_state_dict(weights)
    discriminator.to(dtype)
    data = arrays(f"disc/latent_{channels}_losses.npz")
    with torch.no_grad():
        found = discriminator(tensor(data["real"], dtype))
    error = (found - tensor(data[f"{precision}/logits_real"], dtype)).abs().max().item()
    note(golden_record, "r3gan on latents", precision, error, str(channels))
    assert error <= {"f32": 1e-5, "f64": 1e-9}.get(precision, 3e-2)


def test_published_proportions_are_those_of_the_golden_latents():
    entry = index()["files"]["disc/latent_4_scaled16.safetensors"]
    config = R3GANConfig.published((4, 64, 64))
    assert [width // 16 for width in config.widths] == entry["WidthPerStage"]
    assert [groups // 16 for groups in config.cardinalities] == entry["CardinalityPerStage"]
    assert list(config.blocks) == entry["BlocksPerStage"]
    assert config.expansion == entry["ExpansionFactor"]
    box = [1, 1]
    smoothed = torch.nn.functional.conv1d(
        torch.tensor([[entry["ResamplingFilter"]]]).float(), torch.tensor([[box]]).float(), padding=1
    )
    assert config.resampling_filter == tuple(smoothed.flatten().tolist())


@examples(max_examples=25)
@given(
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(0, 9),
    st.integers(0, 9),
    st.sampled_from([0, 3]),
    st.sampled_from([(1, 1), (1, 3, 3, 1), (1, 2, 3, 3, 2, 1)]),
)
def test_any_size_and_channels(channels, stages, more_height, more_width, num_classes, taps):
    """Every size from the smallest; logits do not depend on the other samples."""
    config = R3GANConfig(
        widths=(4,) * stages,
        cardinalities=(2,) * stages,
        blocks=(1,) * stages,
        resampling_filter=taps,
        num_classes=num_classes,
        embedding_dim=3 if num_classes else 1,
    )
    shape = (channels, (1 << stages - 1) + more_height, (1 << stages - 1) + more_width)
    discriminator = randomize(R3GANDiscriminator(shape, config).double())
    x = randn(3, *shape).requires_grad_()
    labels = torch.tensor([2, 3, 0]) if num_classes else None
    logits = discriminator(x, labels)
    assert logits.shape == (3,)
    alone = [discriminator(x[i : i + 1], labels if labels is None else labels[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(logits, torch.cat(alone))
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("shape", "widths"),
    [
        ((3, 32, 32), (768, 768, 768, 768)),
        ((3, 64, 64), (384, 768, 768, 768, 768)),
        ((4, 64, 96), (384, 768, 768, 768, 768)),
        ((3, 256, 256), (96, 192, 384, 768, 768, 768, 768)),
        ((1, 28, 28), (768, 768, 768)),
        ((1, 3, 3), (768,)),
    ],
)
def test_published_widths(shape, widths):
    config = R3GANConfig.published(shape)
    assert config.widths == widths
    assert config.cardinalities == tuple(width // 8 for width in widths)
    with torch.device("meta"):
        assert R3GANDiscriminator(shape, config)(torch.zeros(2, *shape)).shape == (2,)


def test_published_initialization():
    """He's variance, L^(-1/4) inside blocks, zero at their ends and for biases."""
    config = R3GANConfig((64, 96), (2, 3), (2, 1), num_classes=5, embedding_dim=50)
    weights = build_discriminator("r3gan", (16, 8, 8), seed=0, config=config).state_dict()
    gain = math.sqrt(2 / 1.04) * 3**-0.25
    expected = {
        "extraction.weight": 1 / math.sqrt(16),
        "stages.0.blocks.1.expand.weight": gain / math.sqrt(64),
        "stages.0.blocks.0.spatial.weight": gain / math.sqrt(64 * 9),
        "stages.1.blocks.0.spatial.weight": gain / math.sqrt(64 * 9),
        "stages.0.downsample.project.weight": 1 / math.sqrt(64),
        "head.basis.weight": 1 / math.sqrt(16),
        "head.linear.weight": 1 / math.sqrt(96),
        "embedding.weight": 1 / math.sqrt(50),
    }
    for name, std in expected.items():
        values = weights[name]
        assert values.std().item() == pytest.approx(std, rel=5 / math.sqrt(values.numel())), name
        assert abs(values.mean().item()) < 5 * std / math.sqrt(values.numel()), name
    for name, values in weights.items():
        if name.endswith(("_bias", "blocks.0.project.weight", "blocks.1.project.weight")):
            assert not values.any(), name


def test_every_block_starts_as_the_identity():
    """So a new network is linear."""
    discriminator = build_discriminator("r3gan", (3, 8, 8), seed=0, config=SMALL).double()
    x, y = randn(2, 4, 3, 8, 8)
    torch.testing.assert_close(
        discriminator(2 * x - 3 * y), 2 * discriminator(x) - 3 * discriminator(y), rtol=1e-10, atol=1e-10
    )


def test_a_constant_image_passes_the_filter_unchanged():
    config = R3GANConfig((1, 1), (1, 1), (0, 0))
    stage = R3GANDiscriminator((1, 16, 16), config).stages[0]
    x = torch.full((1, 1, 16, 16), 5.0)
    torch.testing.assert_close(stage(x)[:, :, 1:-1, 1:-1], torch.full((1, 1, 6, 6), 5.0))


@pytest.mark.parametrize("stages", [(0,), (1,), (0, 1)])
def test_bfloat16_stages_stay_near_and_give_full_precision_logits(stages):
    config = dataclasses.replace(SMALL, bfloat16_stages=stages)
    full = randomize(R3GANDiscriminator((3, 8, 8), SMALL))
    mixed = R3GANDiscriminator((3, 8, 8), config)
    mixed.load_state_dict(full.state_dict())
    x = randn(16, 3, 8, 8, dtype=torch.float32)
    found, expected = mixed(x), full(x)
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)
    assert ((found - expected).std() / expected.std()).item() < 0.02


def test_gradients_through_bfloat16_stages_of_first_and_second_order():
    config = dataclasses.replace(SMALL, bfloat16_stages=(0,))
    discriminator = randomize(R3GANDiscriminator((3, 8, 8), config))
    x = randn(2, 3, 8, 8, dtype=torch.float32).requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(x).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert gradient.dtype == torch.float32
    assert all(p.grad is not None for n, p in discriminator.named_parameters() if not n.endswith("bias"))
    assert all(p.grad.isfinite().all() for p in discriminator.parameters() if p.grad is not None)


def test_settings_as_plain_values_build_the_same_network():
    config = {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(SMALL).items()}
    first = build_discriminator("r3gan", (3, 8, 8), seed=1, config=SMALL)
    again = build_discriminator("r3gan", (3, 8, 8), seed=1, config=config)
    assert first.config == again.config
    assert same(first, again)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": (1,)}, "need one per stage"),
        ({"widths": ()}, "need one per stage"),
        ({"widths": (4, 0)}, "must be at least 1"),
        ({"expansion": 0}, "must be at least 1"),
        ({"cardinalities": (3, 3)}, "3 groups do not divide"),
        ({"resampling_filter": (1, 2, 1)}, "even number of taps"),
        ({"resampling_filter": (1, -1)}, "sum not 0"),
        ({"bfloat16_stages": (2,)}, "stages are 0 to 1"),
        ({"num_classes": -1}, "num_classes is -1"),
    ],
)
def test_impossible_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        R3GANDiscriminator((3, 8, 8), dataclasses.replace(SMALL, **changes))


@pytest.mark.parametrize("shape", [(3, 8), (3, 8, 8, 8)])
def test_only_images(shape):
    with pytest.raises(ValueError, match="use 'convolution' for signals and videos"):
        R3GANDiscriminator(shape, SMALL)


def test_too_small_images_are_refused():
    with pytest.raises(ValueError, match="2 stages need at least 2 positions"):
        R3GANDiscriminator((3, 1, 8), SMALL)
    with pytest.raises(ValueError, match="too large; pass a config"):
        R3GANConfig.published((3, 4096, 4096))
