"""Snapshots of EDM networks: their descriptions are checked before use."""

import math

import pytest
import torch
from edm_snapshots import SONG, shared, snapshot, tuple_of_tuples
from torch import nn

from gas_ext.teachers.edm import load_edm_snapshot
from gas_ext.teachers.edm.networks import build_network
from gas_ext.teachers.edm.teacher import build_teacher
from gas_ext.teachers.folder import read_card, save_teacher


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    return build_teacher("EDMPrecond", SONG, (3, 8, 8))


@pytest.fixture
def write(teacher, tmp_path):
    def write(**changes):
        path = tmp_path / "net.pkl"
        path.write_bytes(snapshot(teacher, **changes))
        return path

    return write


def test_weights_and_description_are_read(teacher, write):
    path = write()
    loaded = load_edm_snapshot(path)
    path.write_bytes(b"")  # it is no longer needed
    x, t = torch.randn(2, 3, 8, 8), torch.tensor(0.4)
    assert torch.equal(loaded(x, t), teacher(x, t))
    assert loaded.name == "net"
    assert loaded.architecture == {**SONG, "label_dim": 0}


def test_half_precision_weights_become_float32(teacher, tmp_path):
    path = tmp_path / "half.pkl"
    half = build_teacher("EDMPrecond", SONG, (3, 8, 8)).half()
    path.write_bytes(snapshot(half))
    loaded = load_edm_snapshot(path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("preconditioning", "constants", "message"),
    [
        ("EDMPrecond", {"sigma_data": 1.0}, r"its sigma_data is 1\.0, but only 0\.5 is supported"),
        ("EDMPrecond", {"sigma_max": 80}, "its sigma_max is 80, but only inf"),
        ("EDMPrecond", {"sigma_min": math.nan}, "its sigma_min is nan"),
        ("EDMPrecond", {"sigma_data": tuple_of_tuples()}, "its sigma_data is not a number"),
        ("VPPrecond", {"M": 500}, "its M is 500, but only 1000"),
        ("VPPrecond", {"beta_d": 10.0}, "its beta_d is 10"),
        ("VEPrecond", {"sigma_max": 50.0}, "its sigma_max is 50"),
    ],
)
def test_other_constants_are_refused(preconditioning, constants, message, tmp_path):
    path = tmp_path / "net.pkl"
    path.write_bytes(snapshot(build_teacher(preconditioning, SONG, (3, 8, 8)), **constants))
    with pytest.raises(ValueError, match=message):
        load_edm_snapshot(path)


# Each of these once failed in another way, or never came to an end.
DESCRIPTIONS = {
    "no arguments": ({"_init_kwargs": None}, "does not say how its network was built"),
    "positional arguments": ({"_init_args": (1,)}, "does not say how its network was built"),
    "arguments of another type": ({"_init_args": torch.zeros(2)}, "does not say how its network was built"),
    "no size": ({"arguments": {"img_resolution": ...}}, "img_resolution must be a number"),
    "no channels": ({"arguments": {"img_channels": ...}}, "in_channels must be a number"),
    "negative size": ({"arguments": {"img_resolution": -8}}, "img_resolution must be a number"),
    "endless blocks": ({"arguments": {"num_blocks": 10**9}}, "num_blocks must be a number from 0 to 64"),
    "endless levels": ({"arguments": {"channel_mult": [1] * 10**5}}, "at most 16 of them"),
    "endless labels": ({"arguments": {"label_dim": 10**12}}, "label_dim must be a number"),
    "endless width": ({"arguments": {"model_channels": 2**60}}, "model_channels must be a number"),
    "wide": ({"arguments": {"model_channels": 60_000}}, "cannot be built|as described has"),
    "text for a number": ({"arguments": {"model_channels": "8"}}, "model_channels must be a number"),
    "no width": ({"arguments": {"model_channels": 2}}, "cannot be built"),
    "unknown argument": ({"arguments": {"depth\n": 3}}, r"no argument 'depth\\n'; expected img_resolution"),
    "an argument of ours": ({"arguments": {"name": 3}}, "no argument 'name'"),
    "unknown network": ({"arguments": {"model_type": "UNet"}}, "Network 'UNet' is unknown"),
    "unknown type": ({"arguments": {"encoder_type": "x"}}, "encoder_type is 'x', but must be one of"),
    "endless type": ({"arguments": {"encoder_type": tuple_of_tuples()}}, "encoder_type must be a number"),
    "endless network": ({"arguments": {"model_type": tuple_of_tuples()}}, "class of its network has no name"),
    "another network": (
        {"arguments": {"channel_mult": [1, 4]}},
        "the PreconditionedNetwork as described has",
    ),
    "shared tensors": ({"_parameters": shared(50)}, "its tensors share their numbers"),
    "other modules": ({"_modules": {"model": nn.Identity}}, "refused|is not a pickled module"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_impossible_descriptions_are_refused_in_one_sentence(name, write):
    changes, message = DESCRIPTIONS[name]
    path = write(**changes)
    with pytest.raises(ValueError, match=message) as caught:
        load_edm_snapshot(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_endless_settings_of_training_are_dropped(write, tmp_path):
    """They would be written into the card, leaf by leaf."""
    loaded = load_edm_snapshot(write(arguments={"dropout": tuple_of_tuples()}))
    folder = save_teacher(loaded, tmp_path / "teacher")
    assert "dropout" not in read_card(folder)["config"]["architecture"]


def test_a_network_of_another_class_is_named(teacher, tmp_path):
    data = snapshot(teacher).replace(b"\x8c\x0aEDMPrecond", b"\x8c\x0aEDM\nrecond")
    path = tmp_path / "other.pkl"
    path.write_bytes(data)
    with pytest.raises(
        ValueError, match=r"class EDM\\nrecond, but only VPPrecond, VEPrecond, EDMPrecond are"
    ):
        load_edm_snapshot(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embedding_type": "x"}, "embedding_type is 'x'"),
        ({"decoder_type": "residual"}, "decoder_type is 'residual'"),
        ({"num_blocks": 1.5}, "cannot be built"),
        ({"num_blocks": True}, "num_blocks must be a number"),
        ({"depth": 3}, "SongUNet has no argument 'depth'"),
    ],
)
def test_networks_that_cannot_be_built(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_network("SongUNet", img_resolution=8, in_channels=3, out_channels=3, **arguments)
