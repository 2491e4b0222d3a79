import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from gas_ext import Denoiser, GASSampler, GeneralizedSolver, NoiseSchedule
from gas_ext._utils.noise import seed_labels, stacked_noise, to_uint8
from gas_ext.cli import app
from gas_ext.solvers.registry import build_solver
from gas_ext.teachers.demo import load_demo_teacher


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def teacher():
    return load_demo_teacher()


@pytest.fixture
def solver_file(tmp_path, teacher):
    solver = GeneralizedSolver(
        teacher.schedule, 2, timesteps="quadratic", prediction_type=teacher.prediction_type
    )
    path = tmp_path / "solver.safetensors"
    solver.save(path, teacher={"name": teacher.name, "weights_hash": teacher.weights_hash})
    return path


@pytest.mark.parametrize("truncates", [False, True])
def test_grid_holds_the_samples_of_the_seeds(tmp_path, teacher, solver_file, monkeypatch, truncates):
    monkeypatch.setattr(Denoiser, "truncates", truncates)
    outcome = run(
        "sample", "--solver", solver_file, "--seeds", "7,100-101", "--columns", 3, "--out", tmp_path / "g.png"
    )
    assert outcome.exit_code == 0, outcome.output
    assert "3 images, 2 network evaluations each" in outcome.stdout
    with torch.no_grad():
        samples = GASSampler(GeneralizedSolver.load(solver_file), teacher)(
            stacked_noise([7, 100, 101], teacher.sample_shape), seed_labels([7, 100, 101], 10)
        )
    with Image.open(tmp_path / "g.png") as image:
        assert image.size == (2 * (3 * 34 + 2), 2 * 36)
        for index in range(3):
            place = (2 * (2 + 34 * index + 16), 2 * (2 + 16))
            assert image.getpixel(place) == to_uint8(samples[index, 0, 16, 16], truncate=truncates).item()


def test_solver_of_another_teacher_is_refused(tmp_path, solver_file):
    solver = GeneralizedSolver.load(solver_file)
    for identity, reason in (
        ({"name": "other", "weights_hash": "0"}, "was learned for teacher 'other'"),
        ({"name": load_demo_teacher().name, "weights_hash": "0"}, "other weights"),
    ):
        solver.save(tmp_path / "other.safetensors", teacher=identity)
        outcome = run("sample", "--solver", tmp_path / "other.safetensors", "--out", tmp_path / "g.png")
        assert outcome.exit_code == 1
        assert reason in outcome.stderr
    assert not (tmp_path / "g.png").exists()


def test_solver_that_names_no_teacher_is_taken_with_one_warning(tmp_path, solver_file):
    options = ("--seeds", "0-1", "--out", tmp_path / "g.safetensors")
    GeneralizedSolver.load(solver_file).save(solver_file, teacher={})
    outcome = run("sample", "--solver", solver_file, *options)
    assert outcome.exit_code == 0, outcome.output
    assert outcome.stderr.count("warning: ") == 1
    assert "names no teacher; it is assumed to be a solver for 'fashion-mnist-32'" in outcome.stderr
    other = tmp_path / "other.safetensors"
    GeneralizedSolver(NoiseSchedule.vp_linear(0.1, 19.0), 2).save(other)
    outcome = run("sample", "--solver", other, *options)
    assert outcome.exit_code == 1
    assert outcome.stderr.startswith(
        "error: The solver was made for NoiseSchedule.vp_linear(beta_0=0.1, beta_1=19.0)"
    )
    assert len(outcome.stderr.strip().splitlines()) == 1


def test_training_free_solver_by_name(tmp_path, teacher):
    outcome = run(
        "sample",
        "--solver",
        "unipc-3@logsnr",
        "--nfe",
        3,
        "--seeds",
        "7,9",
        "--out",
        tmp_path / "x.safetensors",
    )
    assert outcome.exit_code == 0, outcome.output
    assert "2 samples, 3 network evaluations each" in outcome.stdout
    assert "device: cpu\n" in outcome.stderr
    solver = build_solver("unipc-3@logsnr", teacher.schedule, 3, teacher.t_eps)
    with torch.no_grad():
        expected = GASSampler(solver, teacher)(
            stacked_noise([7, 9], teacher.sample_shape), seed_labels([7, 9], 10)
        )
    torch.testing.assert_close(load_file(tmp_path / "x.safetensors")["samples"], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--solver", "unipc-3"], "say how many"),
        (["--solver", "unipc-9", "--steps", "3"], "no solver 'unipc-9'"),
        (["--steps", "3"], "demo makes 4 network evaluations, not 3"),
        (["--solver", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--seeds", "9-3"], "backward"),
        (["--device", "tpu"], "--device"),
    ],
)
def test_errors_are_one_sentence(tmp_path, arguments, reason):
    outcome = run("sample", *arguments, "--out", tmp_path / "g.png")
    assert outcome.exit_code == 1
    assert reason in outcome.stderr
    assert len(outcome.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_file_that_is_no_solver_is_refused(tmp_path):
    path = tmp_path / "notes.json"
    path.write_text(json.dumps({"schedule": NoiseSchedule.flow().to_dict()}))
    outcome = run("sample", "--solver", path, "--out", tmp_path / "g.png")
    assert outcome.exit_code == 1
    assert str(path) in outcome.stderr


@pytest.mark.parametrize("name", [".", "grid", "grid.jpg", "folder.png"])
def test_output_that_is_no_png_is_refused_before_any_work(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    monkeypatch.setattr("gas_ext.evaluation.draw_samples", lambda *a, **k: pytest.fail("sampling began"))
    outcome = run("sample", "--out", name)
    assert outcome.exit_code == 1
    assert ".png" in outcome.stderr
    assert len(outcome.stderr.strip().splitlines()) == 1
