"""Importing: where weights are found, what the card states, and what is refused."""

import pickle
import shutil

import pytest
import torch
import yaml
from golden_data import GOLDEN

from gas_ext._utils.files import file_hash
from gas_ext.configs import load_config
from gas_ext.teachers.edm import load_edm_snapshot
from gas_ext.teachers.folder import load_teacher, read_card
from gas_ext.teachers.sources import ImportOptions, find_weights, import_teacher, missing_weights

SNAPSHOT = GOLDEN / "edm/ddpmpp_vp.scrubbed_era2022.pkl"  # 16x16, three channels


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GAS_EXT_WEIGHTS", raising=False)


@pytest.fixture
def config(tmp_path):
    """A data set whose teacher is the golden snapshot."""
    values = load_config("cifar10").model_dump(mode="json")
    values["name"] = "small"
    values["space"]["shape"] = [3, 16, 16]
    values["teacher"]["file"] = "small.pkl"
    values["student"]["t_eps"] = 0.01
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(values))
    return load_config(path)


def test_a_file_becomes_a_folder_that_states_its_origin(tmp_path):
    folder = import_teacher(SNAPSHOT, tmp_path / "teachers/one", ImportOptions(name="mine"))
    card, size = read_card(folder), SNAPSHOT.stat().st_size
    assert (card["name"], card["family"]) == ("mine", "edm")
    assert card["source"] == {"file": SNAPSHOT.name, "bytes": size, "sha256": file_hash(SNAPSHOT)}
    x, t = torch.randn(2, 3, 16, 16), torch.tensor(0.4)
    assert torch.equal(load_teacher(folder)(x, t), load_edm_snapshot(SNAPSHOT)(x, t))


def test_a_config_gives_name_and_last_time(tmp_path, config):
    folder = import_teacher(SNAPSHOT, tmp_path / "teacher", config=config)
    teacher = load_teacher(folder)
    assert teacher.name == "small"
    assert teacher.t_eps == 0.01
    assert teacher.schedule == load_edm_snapshot(SNAPSHOT, t_eps=0.01).schedule


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("imagenet", {"num_heads": 1}),
        ("lsun-bedroom", {"num_head_channels": 32}),
        ("coco", {"num_heads": 8, "text_heads": 12}),
    ],
)
def test_a_config_gives_the_heads(tmp_path, monkeypatch, name, heads):
    seen = {}
    monkeypatch.setattr("gas_ext.teachers.ldm.load_checkpoint", lambda path, **options: seen.update(options))
    torch.save({}, tmp_path / "model.ckpt")
    with pytest.raises(AttributeError):  # nothing was loaded
        import_teacher("model.ckpt", "teacher", config=load_config(name))
    assert {key: value for key, value in seen.items() if "head" in key} == heads
    with pytest.raises(AttributeError):
        import_teacher("model.ckpt", "teacher", ImportOptions(num_heads=4), config=load_config(name))
    assert seen["num_heads"] == 4


@pytest.mark.parametrize("file", ["weights/small.pkl", "weights/small/small.pkl", "other/small/small.pkl"])
def test_the_weights_of_a_config_are_found(tmp_path, config, file, monkeypatch):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    shutil.copy(SNAPSHOT, path)
    if file.startswith("other"):
        monkeypatch.setenv("GAS_EXT_WEIGHTS", str(tmp_path / "other"))
    assert find_weights(config).resolve() == path
    folder = import_teacher("small", tmp_path / "teacher", config=config)
    assert read_card(folder)["source"]["address"] == config.teacher.address


@pytest.mark.parametrize("name", ["cifar10", "ffhq", "afhqv2", "lsun-bedroom", "imagenet"])
def test_missing_weights_are_named_with_path_and_size(tmp_path, name):
    teacher = load_config(name).teacher
    with pytest.raises(FileNotFoundError) as caught:
        import_teacher(name, tmp_path / "teacher")
    sentence = str(caught.value)
    for part in (teacher.file, teacher.address, f"{teacher.megabytes} MB", f"weights/{name}/{teacher.file}"):
        assert part in sentence
    assert "\n" not in sentence
    assert not (tmp_path / "teacher").exists()


def test_missing_weights_on_the_hub_name_the_file_too(tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = r"v1-5-pruned-emaonly\.safetensors .*HF_HUB_OFFLINE"
    with pytest.raises(FileNotFoundError, match=message) as caught:
        import_teacher("coco", tmp_path / "teacher")
    assert "\n" not in str(caught.value)


def test_a_config_that_names_no_weights_says_so(config, tmp_path):
    teacher = config.teacher.model_copy(update={"file": None, "address": None, "megabytes": None})
    nameless = config.model_copy(update={"teacher": teacher})
    sentence = (
        "The config small names no file of weights for its teacher; give its path: "
        "gas-ext import PATH --config CONFIG.yaml -o FOLDER."
    )
    assert missing_weights(nameless) == sentence
    with pytest.raises(FileNotFoundError, match="names no file of weights"):
        import_teacher("small", tmp_path / "teacher", config=nameless)
    unsized = teacher.model_copy(update={"file": "small.pkl"})
    assert "download small.pkl and put it at weights/small/small.pkl" in missing_weights(
        config.model_copy(update={"teacher": unsized})
    )


def test_a_config_goes_before_a_folder_of_its_name(tmp_path):
    (tmp_path / "cifar10").mkdir()
    with pytest.raises(FileNotFoundError, match="The weights of cifar10 are not here"):
        import_teacher("cifar10", tmp_path / "teacher")
    with pytest.raises(ValueError, match="holds no diffusers model"):
        import_teacher("./cifar10", tmp_path / "teacher")


@pytest.mark.parametrize(
    "source", ["nothing.pkl", "weights/nothing.ckpt", "../x/nothing.pt", "/x/y/n.safetensors"]
)
def test_a_missing_path_is_not_requested_from_the_hub(source, tmp_path, monkeypatch):
    monkeypatch.setattr("gas_ext.teachers.hub.fetch_pipeline", lambda *_: pytest.fail("used the hub"))
    with pytest.raises(ValueError, match=rf"There is no {source}: give a file"):
        import_teacher(source, tmp_path / "teacher")


def test_a_source_that_may_be_a_path_or_a_name_on_the_hub(tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = r"There is no a/b/c\.pkl on this disk; as a name on the hub: c\.pkl of a/b"
    with pytest.raises(ValueError, match=message):
        import_teacher("a/b/c.pkl", tmp_path / "teacher")


FOREIGN = {"use_ema": True, "latent_size": 32, "first_stage": "x", "tokenizer": "x"}


@pytest.mark.parametrize(
    ("option", "value"), [("guidance_scale", 2.0), ("variant", "fp16"), *FOREIGN.items()]
)
def test_options_that_do_not_apply_to_a_source_are_refused(option, value, tmp_path):
    with pytest.raises(ValueError, match=f"of type EDM snapshot, which takes no {option}; leave it out"):
        import_teacher(SNAPSHOT, tmp_path / "teacher", ImportOptions(**{option: value}))
    (tmp_path / "folder").mkdir()
    if option in FOREIGN:
        with pytest.raises(ValueError, match=f"of type diffusers folder, which takes no {option}"):
            import_teacher(tmp_path / "folder", tmp_path / "teacher", ImportOptions(**{option: value}))
    assert not (tmp_path / "teacher").exists()


def test_the_files_that_all_share_one_name_need_their_folder(tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/model.ckpt").write_bytes(b"of whom?")
    assert find_weights(load_config("imagenet")) is None
    assert find_weights(load_config("lsun-bedroom")) is None


def test_the_shape_of_the_config_is_checked(tmp_path):
    with pytest.raises(ValueError, match=r"samples of shape \(3, 16, 16\), but the config cifar10"):
        import_teacher(SNAPSHOT, tmp_path / "teacher", config=load_config("cifar10"))
    assert not (tmp_path / "teacher").exists()


def test_sources_that_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("none")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(print))
    folder = import_teacher(SNAPSHOT, tmp_path / "teacher")
    for source, message in (
        ("demo", "ships with the package"),
        ("notes.txt", "has an unknown type"),
        ("evil.pkl", r"evil\.pkl is refused: it names builtins\.print"),
        (folder, "already an imported teacher"),
    ):
        with pytest.raises(ValueError, match=message):
            import_teacher(source, tmp_path / "again")
    with pytest.raises(ValueError, match="exists already"):
        import_teacher(SNAPSHOT, folder)
    assert not (tmp_path / "again").exists()
