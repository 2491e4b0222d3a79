"""gas-ext import: from a published file to a folder that the other commands take."""

import json
import os
import pickle
import shutil
import stat

import pytest
import torch
import yaml
from commands import error_of as command_error
from commands import run, succeed
from golden_data import GOLDEN
from safetensors.torch import load_file, save_file

from gas_ext import GASSampler, GeneralizedSolver
from gas_ext._utils.noise import stacked_noise
from gas_ext.configs import load_config
from gas_ext.safe_pickle import PickledObject
from gas_ext.samples import ReferenceDataset, TeacherSamples
from gas_ext.schedules import NoiseSchedule
from gas_ext.teachers.folder import load_teacher
from gas_ext.teachers.sources import import_teacher

STUDENT = GOLDEN / "checkpoints/steps4_pixel.pt"
DATA_SET = GOLDEN / "dataset/pixel.pkl"  # 8x8, three channels
SNAPSHOT = GOLDEN / "edm/ddpmpp_vp.scrubbed_era2022.pkl"  # 16x16, three channels


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GAS_EXT_WEIGHTS", raising=False)


def error_of(*arguments) -> str:
    return command_error("import", *arguments)


@pytest.mark.slow
def test_import_then_sample():
    text = succeed("import", SNAPSHOT, "--name", "mine", "--t-eps", "0.01", "-o", "teachers/mine")
    assert text == (
        "wrote teachers/mine: edm teacher 'mine', samples 3x16x16, sample, no condition, 0.2 MB\n"
    )
    teacher = load_teacher("teachers/mine")
    assert teacher.t_eps == 0.01
    solver = GeneralizedSolver(teacher.schedule, 2, t_eps=0.01)
    solver.save("s.safetensors", teacher={"name": "mine", "weights_hash": teacher.weights_hash})
    options = ("--solver", "s.safetensors", "--teacher", "teachers/mine", "--seeds", "3,5")
    succeed("sample", *options, "--out", "x.safetensors")
    with torch.no_grad():
        expected = GASSampler(solver, teacher)(stacked_noise([3, 5], (3, 16, 16)))
    torch.testing.assert_close(load_file("x.safetensors")["samples"], expected, atol=1e-5, rtol=0)
    succeed("sample", *options, "--out", "grid.png")


def test_file_modes_follow_the_umask(tmp_path):
    previous = os.umask(0o022)
    try:
        succeed("import", SNAPSHOT, "-o", "teacher")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "teacher").stat().st_mode) == 0o755
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "teacher").iterdir()}
    assert modes == {"model.safetensors": 0o644, "teacher.json": 0o644}


def test_a_hostile_file_is_refused_by_name_and_nothing_is_written(tmp_path):
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(os.system))
    assert "evil.pkl is refused: it names posix.system" in error_of("evil.pkl", "-o", "teachers/evil")
    assert [path.name for path in tmp_path.iterdir()] == ["evil.pkl"]


def test_missing_weights_are_named_with_address_path_and_size():
    error = error_of("cifar10", "-o", "teachers/cifar10")
    assert "edm-cifar10-32x32-uncond-vp.pkl (about 223 MB) from https://nvlabs-fi-cdn.nvidia.com" in error
    assert "put it at weights/cifar10/edm-cifar10-32x32-uncond-vp.pkl" in error


@pytest.mark.slow
def test_options_reach_the_teacher_or_are_refused(tmp_path):
    assert "which takes no tokenizer" in error_of(SNAPSHOT, "--tokenizer", "clip", "-o", "x")
    assert "t_eps is 2.0" in error_of(SNAPSHOT, "--t-eps", "2", "-o", "x")
    assert "There is no config 'nix'" in error_of(SNAPSHOT, "--config", "nix", "-o", "x")
    assert "the config cifar10 describes (3, 32, 32)" in error_of(SNAPSHOT, "--config", "cifar10", "-o", "x")
    assert list(tmp_path.iterdir()) == []
    assert run("import", SNAPSHOT).exit_code == 2
    assert run("import", SNAPSHOT, "--latent-size", "0", "-o", "x").exit_code == 2


@pytest.mark.parametrize("folder", ["full", "file", "file/inside", ".", "/proc/self/inside"])
def test_unwritable_folders_are_refused_before_any_work(tmp_path, monkeypatch, folder):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    (tmp_path / "file").touch()
    monkeypatch.setattr("gas_ext.teachers.sources.load_source", lambda *_: pytest.fail("work began"))
    before = sorted(tmp_path.rglob("*"))
    assert folder.strip("/").split("/")[0] in error_of(SNAPSHOT, "-o", folder)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_current_folder_is_not_replaced(tmp_path):
    assert ". is the current folder" in error_of(SNAPSHOT, "-o", ".")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["empty", "link", "hanging", "t\u00e9acher \u6559"])
def test_empty_folders_links_and_other_names(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    (tmp_path / "hanging").symlink_to("nowhere")
    succeed("import", SNAPSHOT, "-o", name)
    assert json.loads((tmp_path / name / "teacher.json").read_text())["family"] == "edm"
    assert (tmp_path / "link").is_symlink()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_every_command_accepts_an_imported_student():
    text = succeed(
        "import", STUDENT, "--steps", 4, "--config", "cifar10", "-o", "solvers/student.safetensors"
    )
    assert text == "wrote solvers/student.safetensors: a solver of 4 network evaluations for cifar10\n"
    solver = GeneralizedSolver.load("solvers/student.safetensors")
    expected = GeneralizedSolver.from_reference_checkpoint(STUDENT, NoiseSchedule.vp_linear(), 4, 1e-3)
    assert (solver.t_eps, solver.schedule, solver.prediction_type) == (1e-3, expected.schedule, "sample")
    for name, value in solver.named_parameters():
        assert torch.equal(value, expected.get_parameter(name))
    judge = ("--config", "demo", "--samples", 2, "--set", "teacher_solver.steps=4", "--threads", 1)
    for arguments in (
        ("sample", "--seeds", "0-1"),
        ("evaluate", *judge, "--features", "none", "-o", "e"),
        ("compare", *judge, "--features", "none", "--nfe", "4,6", "-o", "c"),
    ):
        outcome = run(*arguments, "--solver", "solvers/student.safetensors")
        assert outcome.exit_code == 0, outcome.output
        assert outcome.stderr.count("student.safetensors names no teacher") == 1


def test_a_student_takes_the_schedule_of_an_imported_teacher():
    run("import", SNAPSHOT, "-o", "teachers/cifar10")
    schedule = load_teacher("teachers/cifar10").schedule
    assert schedule != NoiseSchedule.vp_linear()
    for teacher in ((), ("--teacher", "teachers/cifar10")):
        succeed("import", STUDENT, "--config", "cifar10", *teacher, "-o", "s.safetensors")
        assert GeneralizedSolver.load("s.safetensors").schedule == schedule


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("-o", "s.safetensors"), "name its data set with --config"),
        (("--config", "cifar10", "-o", "s"), "must be a file ending in .safetensors"),
        (("--config", "cifar10", "--steps", 5, "-o", "s.safetensors"), "not a student of 5 steps"),
        (("--config", "cifar10", "--heads", 1, "-o", "s.safetensors"), "takes no num_heads"),
        (("--config", "coco", "-o", "s.safetensors"), "run gas-ext import coco -o teachers/coco first"),
    ],
)
def test_a_student_that_cannot_be_imported(tmp_path, arguments, reason):
    assert reason in error_of(STUDENT, *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x.pt", "x.npz"])
@pytest.mark.parametrize("command", [("sample",), ("evaluate", "-c", "demo"), ("compare", "-c", "demo")])
def test_a_solver_of_another_format_names_the_import_command(tmp_path, command, name):
    shutil.copy(STUDENT, tmp_path / name)
    error = command_error(*command, "--solver", name)
    published = name == "x.pt"
    assert ("is a published checkpoint" if published else "ends in .npz") in error
    student = "x" if published else "student"
    assert f"gas-ext import {student}.pt --steps N --config NAME -o {student}.safetensors" in error


def test_a_published_data_set_becomes_a_sample_folder(tmp_path):
    values = load_config("cifar10").model_dump(mode="json")
    values["space"]["shape"], values["seeds"]["teacher"] = [3, 8, 8], "0-19"
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(values))
    text = succeed("import", DATA_SET, "--config", "small.yaml", "-o", "samples/small")
    assert text == "wrote samples/small: 16 samples\n"
    samples, dataset = TeacherSamples.open("samples/small"), ReferenceDataset(DATA_SET)
    first = dataset.find_seeds(range(20)).index(samples.seeds[0])
    assert torch.equal(samples.batch([0]).samples, dataset.batch([first]).samples)
    assert "the config cifar10 describes (3, 32, 32) and none" in error_of(
        DATA_SET, "--config", "cifar10", "-o", "x"
    )


def test_files_named_as_another_format_say_so(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "a.pkl")
    torch.save({"state_dict": {}}, tmp_path / "old.pkl", _use_new_zipfile_serialization=False)
    shutil.copy(SNAPSHOT, tmp_path / "b.ckpt")
    shutil.copy(SNAPSHOT, tmp_path / "c.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "d.pt")
    for name, form in (("a.pkl", "ckpt"), ("old.pkl", "ckpt"), ("b.ckpt", "pkl"), ("c.safetensors", "pkl")):
        assert f"{name} ends in .{name.split('.')[1]}, but is " in error_of(name, "-o", "x")
        assert f"rename it to end in .{form}." in error_of(name, "-o", "x")
    assert "d.pt ends in .pt, but is a safetensors file" in error_of("d.pt", "-o", "x")


def test_a_truncated_checkpoint_says_so(tmp_path):
    torch.save({"state_dict": {"x": torch.zeros(9)}}, tmp_path / "cut.ckpt")
    content = (tmp_path / "cut.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(content[: len(content) // 2])
    assert "it is truncated or altered" in error_of("cut.ckpt", "-o", "x")


def test_published_files_other_than_teachers_name_their_loader(tmp_path, monkeypatch):
    snapshot = {"D": PickledObject("training.networks", "Discriminator")}
    monkeypatch.setattr("gas_ext.teachers.published.read_pickle", lambda *_, **__: snapshot)
    error = error_of(SNAPSHOT, "-o", "x")
    assert "is an R3GAN snapshot, not a teacher" in error
    assert "gas_ext.training.discriminators.load_r3gan_snapshot" in error
    monkeypatch.undo()
    for path, out in ((STUDENT, "solver.safetensors"), (DATA_SET, "samples/NAME")):
        with pytest.raises(ValueError, match=f"not a teacher: run gas-ext import .* -o {out}"):
            import_teacher(path, tmp_path / "x")
