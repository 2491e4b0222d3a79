"""Folders of teachers: each fault is reported in one sentence."""

import json

import pytest
import torch

from gas_ext.teachers.edm.teacher import build_teacher
from gas_ext.teachers.folder import load_teacher, save_teacher

ARCHITECTURE = {
    "network": "SongUNet",
    "model_channels": 8,
    "channel_mult": [1],
    "num_blocks": 1,
    "attn_resolutions": [],
}
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    teacher = build_teacher("EDMPrecond", ARCHITECTURE, (1, 8, 8), name="small")
    return save_teacher(teacher, tmp_path_factory.mktemp("teachers") / "small", source={"file": "a.pkl"})


@pytest.fixture
def card(folder):
    """The card; the files are restored."""
    contents = {path: path.read_bytes() for path in folder.iterdir()}
    yield json.loads(contents[folder / "teacher.json"])
    for path, content in contents.items():
        path.write_bytes(content)


def refused(message, folder, content=None, **options):
    """Loading is refused in one sentence, after the card has been replaced."""
    if content is not None:
        (folder / "teacher.json").write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        load_teacher(folder, **options)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_the_card_states_the_origin_of_the_weights(folder, card):
    assert (card["name"], card["family"], card["source"]) == ("small", "edm", {"file": "a.pkl"})
    assert load_teacher(folder).weights_hash == card["weights_hash"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "is not a card of format 1"),
        ({"weights_hash": 3}, "'weights_hash' is 3, but must be a str"),
        ({"files": []}, r"'files' is \[\], but must be a dict"),
        ({"files": {WEIGHTS: 3}}, "is 3, but must be a dict"),
        ({"files": {WEIGHTS: {"bytes": 3}}}, "sha256 is missing"),
        ({"files": {"../x": {"bytes": 3, "sha256": ""}}}, "'../x', which is outside the folder"),
        ({"files": {"/x": {"bytes": 3, "sha256": ""}}}, "'/x', which is outside the folder"),
        ({"files": {}}, "contradicts itself"),
        ({"weights_hash": "0"}, "contradicts itself"),
        ({"family": "gan"}, "names the family 'gan'; expected one of edm, ldm, diffusers"),
        ({"config": {}}, r"config does not fit EDMTeacher \(KeyError: 'preconditioning'\)"),
    ],
)
def test_damaged_cards(changes, message, folder, card):
    refused(message, folder, json.dumps({**card, **changes}))


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not JSON"), ("[]", "not a card of format 1"), ("[" * 100_000, "is not JSON")],
    ids=["cut off", "no object", "nested"],
)
def test_files_that_are_not_cards(content, message, folder, card):
    refused(message, folder, content)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": {**ARCHITECTURE, "num_blocks": 10**9}}, "num_blocks must be a number from 0 to 64"),
        ({"architecture": {**ARCHITECTURE, "num_blocks": 2}}, "PreconditionedNetwork as described has"),
        ({"architecture": {**ARCHITECTURE, "network": []}}, "config does not fit EDMTeacher"),
        ({"preconditioning": "iDDPM"}, "Preconditioning 'iDDPM' is unknown"),
        ({"image_shape": [1]}, "config does not fit EDMTeacher"),
        ({"schedule": {"family": "sine"}}, "Schedule family 'sine' is unknown"),
        ({"t_eps": 3}, "t_eps is 3"),
    ],
)
def test_descriptions_of_another_network(changes, message, folder, card):
    refused(message, folder, json.dumps({**card, "config": {**card["config"], **changes}}))


def test_damaged_and_missing_weights(folder, card, tmp_path):
    path = folder / WEIGHTS
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused(rf"{WEIGHTS} is damaged", folder)
    assert load_teacher(folder, verify=False).name == "small"
    path.write_bytes(b"\xff" * 8 + content[8:])
    refused("cannot be used: .*; import the teacher again", folder, verify=False)
    path.unlink()
    refused(rf"{WEIGHTS} is missing", folder)
    refused("run gas-ext import first", tmp_path)
    with pytest.raises(ValueError, match="exists already"):
        save_teacher(build_teacher("EDMPrecond", ARCHITECTURE, (1, 8, 8)), folder)
