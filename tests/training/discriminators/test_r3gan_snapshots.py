import pickle
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from fake_r3gan import published_state_dict, snapshot_bytes
from golden_data import GOLDEN, arrays, index, note
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from gas_ext.training.discriminators import (
    R3GANConfig,
    R3GANDiscriminator,
    load_discriminator,
    load_r3gan_snapshot,
    save_discriminator,
)
from gas_ext.training.discriminators.snapshots import readable_state_dict

SNAPSHOTS = sorted(path.name for path in GOLDEN.glob("r3gan/*.pkl"))


def randomized(shape, config, seed=0):
    discriminator = R3GANDiscriminator(shape, config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in discriminator.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return discriminator


@pytest.mark.slow
@pytest.mark.parametrize("name", SNAPSHOTS)
@pytest.mark.parametrize("bfloat16", [True, False])
@pytest.mark.parametrize("saved", [False, True])
def test_golden_logits(name, bfloat16, saved, golden_record, tmp_path):
    """Stage by stage in the published dtypes, with labels and without, also through our own file."""
    discriminator = load_r3gan_snapshot(GOLDEN / "r3gan" / name, bfloat16=bfloat16)
    if saved:
        save_discriminator(discriminator, tmp_path / "saved.safetensors")
        discriminator = load_discriminator(tmp_path / "saved.safetensors")
    stem = name.split(".")[0]
    data, gas = arrays(f"r3gan/{stem}.npz"), arrays(f"r3gan/{stem}_gas.npz")
    one_hot = torch.from_numpy(data["c"])
    labels = one_hot.argmax(1) if discriminator.num_classes else None
    suffix = "" if bfloat16 else "_all_float32"
    cases = [
        (data["img"], labels, data[f"logits{suffix}"]),
        (gas["img"], None, gas[f"logits_gas_constant_embedding{suffix}"]),
    ]
    for images, given_labels, expected in cases:
        with torch.no_grad():
            found = discriminator(torch.from_numpy(images), given_labels)
        error = (found - torch.from_numpy(expected)).abs().max().item()
        note(golden_record, "r3gan", "bfloat16" if bfloat16 else "float32", error, name)
        # The same operations give the same bits here; another machine may round its sums otherwise, by at
        # most a few roundings of the dtype.
        assert error <= (3e-2 if bfloat16 else 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", SNAPSHOTS)
def test_golden_config(name):
    discriminator = load_r3gan_snapshot(GOLDEN / "r3gan" / name)
    expected = index()["files"][f"r3gan/{name.split('.')[0]}.npz"]["D_kwargs"]
    config = discriminator.config
    assert config.widths == tuple(expected["WidthPerStage"])
    assert config.cardinalities == tuple(expected["CardinalityPerStage"])
    assert config.blocks == tuple(expected["BlocksPerStage"])
    assert config.expansion == expected["ExpansionFactor"]
    assert config.bfloat16_stages == tuple(sorted(expected["FP16Stages"]))
    assert config.num_classes == expected["c_dim"]
    assert config.embedding_dim == expected.get("ConditionEmbeddingDimension", 1)
    assert config.resampling_filter == (1, 3, 3, 1)
    assert discriminator.sample_shape == (3, *[expected["img_resolution"]] * 2)


@pytest.mark.slow
@pytest.mark.parametrize("legacy", [False, True])
@examples(max_examples=8)
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([0, 5]),
    st.sampled_from([(1, 1), (1, 3, 3, 1), (1, 5, 10, 10, 5, 1)]),
)
def test_any_config_is_read_back(legacy, stages, expansion, num_classes, taps):
    config = R3GANConfig(
        widths=tuple(4 * (stage + 1) for stage in range(stages)),
        cardinalities=(2,) * stages,
        blocks=tuple(1 + stage % 2 for stage in range(stages)),
        expansion=expansion,
        resampling_filter=taps,
        num_classes=num_classes,
        embedding_dim=6 if num_classes else 1,
        bfloat16_stages=tuple(range(stages - 1)),
    )
    shape = (2, 2 << stages, 3 << stages)
    original = randomized(shape, config)
    with TemporaryDirectory() as folder:
        again = load_r3gan_snapshot(write(Path(folder) / "snapshot.pkl", snapshot_bytes(original, legacy)))
    assert again.sample_shape == shape
    if stages > 1:
        torch.testing.assert_close(again.config.resampling_filter, tuple(map(float, taps)), rtol=1e-6, atol=0)
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 4, 5]) if num_classes else None
    assert torch.equal(again(x, labels), original(x, labels))
    assert all(parameter.requires_grad for parameter in again.parameters())


CONFIG = R3GANConfig((4, 4), (1, 2), (1, 1))


def write(path, content) -> str:
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=4))
    return str(path)


def test_other_pickles_are_refused_by_name(tmp_path):
    path = write(tmp_path / "other.pkl", {"ema": [1, 2]})
    message = r"other.pkl is not an R3GAN snapshot: it has no discriminator under 'D'"
    with pytest.raises(ValueError, match=message):
        load_r3gan_snapshot(path)
    path = write(tmp_path / "code.pkl", {"D": print})
    with pytest.raises(ValueError, match=re.escape("code.pkl is refused")):
        load_r3gan_snapshot(path)


@pytest.mark.parametrize("damage", ["missing", "unknown", "shape", "stages"])
def test_other_discriminators_are_refused(tmp_path, damage, monkeypatch):
    weights = published_state_dict(randomized((2, 8, 8), CONFIG))
    if damage == "missing":
        del weights["MainLayers.1.Layers.0.LinearLayer2.Layer.weight"]
    elif damage == "unknown":
        weights["MainLayers.0.Norm.weight"] = torch.ones(3)
    elif damage == "shape":
        weights["MainLayers.1.Layers.0.LinearLayer3.Layer.weight"] = torch.zeros(2, 2, 1, 1)
    else:  # a stage far out, which must not make the reader count there
        weights["MainLayers.99999999999.Layers.0.NonLinearity1.Bias"] = torch.zeros(3)
    monkeypatch.setattr("fake_r3gan.published_state_dict", lambda discriminator: weights)
    path = write(tmp_path / "odd.pkl", snapshot_bytes(randomized((2, 8, 8), CONFIG)))
    with pytest.raises(ValueError, match=r"odd.pkl is not a discriminator of R3GAN"):
        load_r3gan_snapshot(path)


def test_huge_claims_take_no_memory(tmp_path, monkeypatch):
    """Sizes come from tensors that need not fit each other; nothing is allocated before they do."""
    weights = published_state_dict(randomized((2, 8, 8), CONFIG))
    for stage in (0, 1):
        weights[f"MainLayers.{stage}.Layers.0.LinearLayer3.Layer.weight"] = torch.zeros(1_000_000, 1, 1, 1)
        weights[f"MainLayers.{stage}.Layers.0.LinearLayer2.Layer.weight"] = torch.zeros(1_000_000, 1, 1, 1)
    monkeypatch.setattr("fake_r3gan.published_state_dict", lambda discriminator: weights)
    path = write(tmp_path / "huge.pkl", snapshot_bytes(randomized((2, 8, 8), CONFIG)))
    with pytest.raises(ValueError, match="is not a discriminator of R3GAN"):
        load_r3gan_snapshot(path)


def test_names_are_unique():
    published = published_state_dict(
        randomized((2, 8, 8), R3GANConfig((4, 6), (1, 2), (2, 1), num_classes=3))
    )
    assert len(readable_state_dict(published)) == len(published)
