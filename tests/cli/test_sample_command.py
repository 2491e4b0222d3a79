import json

import pytest
import torch
from commands import error_of, run, succeed
from PIL import Image
from safetensors.torch import load_file

from gas_ext import Denoiser, GASSampler, GeneralizedSolver, NoiseSchedule
from gas_ext._utils.noise import seed_labels, stacked_noise, to_uint8
from gas_ext.solvers.registry import build_solver
from gas_ext.teachers.demo import load_demo_teacher


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


def expected_samples(solver, teacher, seeds):
    with torch.no_grad():
        noise = stacked_noise(seeds, teacher.sample_shape)
        return GASSampler(solver, teacher)(noise, seed_labels(seeds, 10))


@pytest.mark.slow
@pytest.mark.parametrize("truncates", [False, True])
def test_grid_holds_the_samples_of_the_seeds(tmp_path, teacher, solver_file, monkeypatch, truncates):
    monkeypatch.setattr(Denoiser, "truncates", truncates)
    options = ("--seeds", "7,100-101", "--columns", 3, "--out", tmp_path / "g.png")
    assert "3 images, 2 network evaluations each" in succeed("sample", "--solver", solver_file, *options)
    samples = expected_samples(GeneralizedSolver.load(solver_file), teacher, [7, 100, 101])
    with Image.open(tmp_path / "g.png") as image:
        assert image.size == (2 * (3 * 34 + 2), 2 * 36)
        for index in range(3):
            pixel = (2 * (2 + 34 * index + 16), 2 * (2 + 16))
            assert image.getpixel(pixel) == to_uint8(samples[index, 0, 16, 16], truncate=truncates).item()


def test_solver_of_another_teacher_is_refused(tmp_path, teacher, solver_file):
    solver, other = GeneralizedSolver.load(solver_file), tmp_path / "other.safetensors"
    for identity, reason in (
        ({"name": "other", "weights_hash": "0"}, "was learned for teacher 'other'"),
        ({"name": teacher.name, "weights_hash": "0"}, "other weights"),
    ):
        solver.save(other, teacher=identity)
        assert reason in error_of("sample", "--solver", other, "--out", tmp_path / "g.png")
    assert not (tmp_path / "g.png").exists()


def test_solver_without_a_teacher_is_accepted_with_one_warning(tmp_path, solver_file):
    options = ("--seeds", "0-1", "--out", tmp_path / "g.safetensors")
    GeneralizedSolver.load(solver_file).save(solver_file, teacher={})
    outcome = run("sample", "--solver", solver_file, *options)
    assert outcome.exit_code == 0, outcome.output
    assert outcome.stderr.count("warning: ") == 1
    assert "names no teacher; it is assumed to be a solver for 'fashion-mnist-32'" in outcome.stderr
    other = tmp_path / "other.safetensors"
    GeneralizedSolver(NoiseSchedule.vp_linear(0.1, 19.0), 2).save(other)
    assert "NoiseSchedule.vp_linear(beta_0=0.1, beta_1=19.0)" in error_of(
        "sample", "--solver", other, *options
    )


def test_training_free_solver_by_name(tmp_path, teacher):
    path = tmp_path / "x.safetensors"
    options = ("--solver", "unipc-3@logsnr", "--nfe", 3, "--seeds", "7,9", "--out", path)
    outcome = run("sample", *options)
    assert outcome.exit_code == 0, outcome.output
    assert "2 samples, 3 network evaluations each" in outcome.stdout
    assert "device: cpu\n" in outcome.stderr
    solver = build_solver("unipc-3@logsnr", teacher.schedule, 3, teacher.t_eps)
    expected = expected_samples(solver, teacher, [7, 9])
    torch.testing.assert_close(load_file(path)["samples"], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--solver", "unipc-3"], "with steps (--steps)"),
        (["--solver", "unipc-9", "--steps", "3"], "no solver 'unipc-9'"),
        (["--steps", "3"], "demo makes 4 network evaluations, not 3"),
        (["--solver", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--seeds", "9-3"], "backward"),
        (["--device", "tpu"], "--device"),
    ],
)
def test_errors_are_one_sentence(tmp_path, arguments, reason):
    assert reason in error_of("sample", *arguments, "--out", tmp_path / "g.png")
    assert list(tmp_path.iterdir()) == []


def test_file_that_is_not_a_solver_is_refused(tmp_path):
    path = tmp_path / "notes.json"
    path.write_text(json.dumps({"schedule": NoiseSchedule.flow().to_dict()}))
    assert str(path) in error_of("sample", "--solver", path, "--out", tmp_path / "g.png")


@pytest.mark.parametrize("name", [".", "grid", "grid.jpg", "folder.png"])
def test_output_of_another_type_is_refused_before_any_work(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    monkeypatch.setattr("gas_ext.evaluation.draw_samples", lambda *_, **__: pytest.fail("sampling began"))
    assert ".png" in error_of("sample", "--out", name)
