import json
import os

import pytest
import torch

from gas_ext import GASSampler, GeneralizedSolver
from gas_ext.data import seed_labels, stacked_noise
from gas_ext.demo import DemoConfig, check_output_folder, run_demo, write_demo
from gas_ext.teachers.demo import load_demo_teacher

TINY = DemoConfig(steps=2, iterations=2, seed=3, train_samples=8, held_out_samples=8, selection_samples=4)
FILES = ["results.json", "samples.png", "solver.safetensors", "times.png"]


@pytest.fixture(scope="module")
def result():
    return run_demo(TINY)


@pytest.fixture(scope="module")
def folder(result, tmp_path_factory):
    path = tmp_path_factory.mktemp("demo") / "deep" / "gas-demo"
    write_demo(result, path)
    return path


def test_training_and_held_out_seeds_never_meet():
    for seed in (0, 1, 49, 50, 123):
        config = DemoConfig(seed=seed)
        assert max(config.training_seeds()) < 50_000 <= min(config.held_out_seeds())


def test_rows(result):
    assert [row.solver for row in result.rows] == ["teacher", "classical", "learned"]
    assert [row.nfe for row in result.rows] == [20, 2, 2]
    assert result.rows[0].l1_to_teacher == 0
    assert all(row.frechet_to_teacher > 0 and row.frechet_to_data > 0 for row in result.rows)
    assert len(result.candidates) == 8  # orders 1 and 2 on four spacings
    assert result.candidates[result.classical.description] == min(result.candidates.values())
    assert len(result.training.losses) == 2


def test_distances_are_those_of_the_samples(result):
    teacher, classical, learned = result.samples
    assert result.rows[1].l1_to_teacher == pytest.approx((classical - teacher).abs().mean().item(), rel=1e-5)
    assert result.rows[2].l1_to_teacher == pytest.approx((learned - teacher).abs().mean().item(), rel=1e-5)


def test_files(folder, result):
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["gas-demo"]
    record = json.loads((folder / "results.json").read_text())
    assert record["rows"] == [row.to_dict() for row in result.rows]
    assert record["seed"] == 3
    assert record["feature_extractor"]
    assert {"gas_ext", "torch", "python"} <= set(record["versions"])
    assert record["training"]["losses"] == result.training.losses


def test_saved_solver_draws_the_same_samples(folder, result):
    teacher = load_demo_teacher()
    solver = GeneralizedSolver.load(folder / "solver.safetensors", weights_hash=teacher.weights_hash)
    assert solver.teacher == {"name": teacher.name, "weights_hash": teacher.weights_hash}
    assert solver.prediction_type == teacher.prediction_type
    seeds = TINY.held_out_seeds()
    with torch.no_grad():
        samples = GASSampler(solver, teacher)(
            stacked_noise(seeds, teacher.sample_shape), seed_labels(seeds, teacher.num_classes)
        )
    assert torch.equal(samples, result.samples[2])


def test_failed_writing_leaves_nothing(result, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("gas_ext.demo.plot_solver", fail)
    with pytest.raises(OSError, match="disk full"):
        write_demo(result, tmp_path / "gas-demo")
    assert list(tmp_path.iterdir()) == []


def test_output_folder_is_checked_first(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        check_output_folder(tmp_path / "file" / "gas-demo")
    assert check_output_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"


def test_folder_without_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match="not writable"):
        check_output_folder(tmp_path / "gas-demo")


@pytest.mark.parametrize(
    "name", ["steps", "iterations", "train_samples", "held_out_samples", "selection_samples"]
)
def test_settings_out_of_range_are_refused_by_name(name):
    with pytest.raises(ValueError, match=name):
        DemoConfig(**{name: 0})
