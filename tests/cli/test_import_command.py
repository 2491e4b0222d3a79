"""gas-ext import: from a published file to a folder that the other commands take."""

import json
import os
import pickle
import stat

import pytest
import torch
from golden_data import GOLDEN
from safetensors.torch import load_file
from typer.testing import CliRunner

from gas_ext import GASSampler, GeneralizedSolver
from gas_ext._utils.noise import stacked_noise
from gas_ext.cli import app
from gas_ext.teachers.folder import load_teacher

SNAPSHOT = GOLDEN / "edm/ddpmpp_vp.scrubbed_era2022.pkl"  # 16x16, three channels


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GAS_EXT_WEIGHTS", raising=False)


def error_of(*arguments) -> str:
    outcome = run("import", *arguments)
    assert outcome.exit_code == 1, outcome.output
    assert len(outcome.stderr.strip().splitlines()) == 1
    return outcome.stderr


def test_import_then_sample():
    outcome = run("import", SNAPSHOT, "--name", "mine", "--t-eps", "0.01", "-o", "teachers/mine")
    assert outcome.exit_code == 0, outcome.output
    assert outcome.stdout == (
        "wrote teachers/mine: edm teacher 'mine', samples 3x16x16, sample, no condition, 0.2 MB\n"
    )
    teacher = load_teacher("teachers/mine")
    assert teacher.t_eps == 0.01
    solver = GeneralizedSolver(teacher.schedule, 2, t_eps=0.01)
    solver.save("s.safetensors", teacher={"name": "mine", "weights_hash": teacher.weights_hash})
    options = ("--solver", "s.safetensors", "--teacher", "teachers/mine", "--seeds", "3,5")
    outcome = run("sample", *options, "--out", "x.safetensors")
    assert outcome.exit_code == 0, outcome.output
    with torch.no_grad():
        expected = GASSampler(solver, teacher)(stacked_noise([3, 5], (3, 16, 16)))
    torch.testing.assert_close(load_file("x.safetensors")["samples"], expected, atol=1e-5, rtol=0)
    assert run("sample", *options, "--out", "grid.png").exit_code == 0


def test_every_file_can_be_read_by_those_whom_the_umask_lets(tmp_path):
    previous = os.umask(0o022)
    try:
        assert run("import", SNAPSHOT, "-o", "teacher").exit_code == 0
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "teacher").stat().st_mode) == 0o755
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "teacher").iterdir()}
    assert modes == {"model.safetensors": 0o644, "teacher.json": 0o644}


def test_what_a_hostile_file_names_is_told_and_nothing_is_written(tmp_path):
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(os.system))
    assert "evil.pkl is refused: it names posix.system" in error_of("evil.pkl", "-o", "teachers/evil")
    assert [path.name for path in tmp_path.iterdir()] == ["evil.pkl"]


def test_missing_weights_are_named_with_place_and_size():
    said = error_of("cifar10", "-o", "teachers/cifar10")
    assert "edm-cifar10-32x32-uncond-vp.pkl (about 223 MB) from https://nvlabs-fi-cdn.nvidia.com" in said
    assert "put it at weights/cifar10/edm-cifar10-32x32-uncond-vp.pkl" in said


def test_options_reach_the_teacher_or_are_refused(tmp_path):
    assert "which takes no tokenizer" in error_of(SNAPSHOT, "--tokenizer", "clip", "-o", "x")
    assert "t_eps is 2.0" in error_of(SNAPSHOT, "--t-eps", "2", "-o", "x")
    assert "There is no config 'nix'" in error_of(SNAPSHOT, "--config", "nix", "-o", "x")
    assert "the config cifar10 describes (3, 32, 32)" in error_of(SNAPSHOT, "--config", "cifar10", "-o", "x")
    assert list(tmp_path.iterdir()) == []
    assert run("import", SNAPSHOT).exit_code == 2
    assert run("import", SNAPSHOT, "--latent-size", "0", "-o", "x").exit_code == 2


@pytest.mark.parametrize("place", ["full", "file", "file/inside", ".", "/proc/self/inside"])
def test_places_where_nothing_can_be_written_are_refused_before_any_work(tmp_path, monkeypatch, place):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    (tmp_path / "file").touch()
    monkeypatch.setattr("gas_ext.teachers.sources.load_source", lambda *_: pytest.fail("work began"))
    before = sorted(tmp_path.rglob("*"))
    assert place.strip("/").split("/")[0] in error_of(SNAPSHOT, "-o", place)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_current_folder_is_not_replaced(tmp_path):
    assert ". is the current folder" in error_of(SNAPSHOT, "-o", ".")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["empty", "link", "hanging", "t\u00e9acher \u6559"])
def test_empty_folders_links_and_other_names(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    (tmp_path / "hanging").symlink_to("nowhere")
    outcome = run("import", SNAPSHOT, "-o", name)
    assert outcome.exit_code == 0, outcome.output
    assert json.loads((tmp_path / name / "teacher.json").read_text())["family"] == "edm"
    assert (tmp_path / "link").is_symlink()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
