import dataclasses
import json
import math
import os

import pytest
import torch

from gas_ext import GASSampler, GeneralizedSolver
from gas_ext._utils.noise import seed_labels, stacked_noise
from gas_ext._utils.progress import SilentReporter
from gas_ext.cli.demo_run import DemoConfig, _learn, check_output_folder, run_demo, write_demo
from gas_ext.evaluation.metrics import feature_statistics, frechet_distance
from gas_ext.teachers.demo import load_demo_features, load_demo_statistics, load_demo_teacher
from gas_ext.training import train_solver
from gas_ext.training.baselines import classical_solver

TINY = DemoConfig(steps=2, iterations=2, seed=3, train_samples=8, held_out_samples=8, selection_samples=4)
FILES = ["results.json", "samples.png", "solver.safetensors", "times.png"]


@pytest.fixture(scope="module")
def run():
    """Run the demo once; return its result, and the noise and targets that went into the training."""
    given = {}

    def train(solver, denoiser, noise, target, labels, **settings):
        given.update(noise=noise, target=target, labels=labels)
        return train_solver(solver, denoiser, noise, target, labels, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gas_ext.cli.demo_run.train_solver", train)
        return run_demo(TINY), given


@pytest.fixture(scope="module")
def result(run):
    return run[0]


@pytest.fixture(scope="module")
def folder(result, tmp_path_factory):
    path = tmp_path_factory.mktemp("demo") / "deep" / "gas-demo"
    write_demo(result, path)
    return path


def test_training_and_held_out_seeds_never_meet():
    for seed in (0, 1, 49):
        config = DemoConfig(seed=seed)
        assert max(config.training_seeds()) < 50_000 <= min(config.held_out_seeds())
        assert max(config.held_out_seeds()) < 100_000


@pytest.mark.parametrize(
    "settings",
    [
        {"train_samples": 50_001},
        {"seed": 49, "train_samples": 1001},
        {"held_out_samples": 50_001},
        {"seed": 49, "held_out_samples": 1001},
    ],
)
def test_settings_that_would_mix_the_seeds_are_refused(settings):
    name = list(settings)[-1]
    with pytest.raises(ValueError, match=f"{name} is {settings[name]}.* at most {settings[name] - 1}"):
        DemoConfig(**settings)
    DemoConfig(**{**settings, name: settings[name] - 1})


@pytest.mark.parametrize("seed", [-1, 50])
def test_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match=f"seed is {seed}"):
        DemoConfig(seed=seed)


def test_training_sees_the_training_seeds_only(run):
    _, given = run
    teacher, seeds = load_demo_teacher(), range(3000, 3008)
    assert torch.equal(given["noise"], stacked_noise(seeds, teacher.sample_shape))
    assert torch.equal(given["labels"], seed_labels(seeds, teacher.num_classes))
    guide = classical_solver(teacher.schedule, 20, 3, "logsnr", teacher.t_eps)
    with torch.no_grad():
        assert torch.equal(
            given["target"], GASSampler(guide.solver, teacher)(given["noise"], given["labels"])
        )


@pytest.mark.parametrize(("order", "spacing"), [(1, "edm"), (2, "quadratic"), (3, "logsnr")])
def test_learning_starts_from_the_dpm_solver(monkeypatch, order, spacing):
    started = []
    monkeypatch.setattr(
        "gas_ext.cli.demo_run.fit_start", lambda solver, *args, **kwargs: started.append(solver)
    )
    monkeypatch.setattr(
        "gas_ext.cli.demo_run.train_solver", lambda solver, *args, **kwargs: started.append(solver)
    )
    teacher = load_demo_teacher()
    classical = classical_solver(teacher.schedule, 3, order, spacing, teacher.t_eps)
    nothing = torch.empty(0)
    _learn(DemoConfig(steps=3), SilentReporter(), teacher, classical, nothing, nothing, nothing)
    assert started[0] is started[1]
    expected = classical.solver.coefficients(teacher.prediction_type)
    found = started[0].coefficients()
    assert torch.equal(found.timesteps, expected.timesteps)
    for name in ("data", "state"):
        a, b = getattr(found.weights, name), getattr(expected.weights, name)
        assert torch.equal(a[:, : b.shape[1]], b)
        assert not a[:, b.shape[1] :].any()


def test_frechet_distances_are_to_their_own_statistics(result):
    features, statistics = load_demo_features(), load_demo_statistics()
    for row, samples in zip(result.rows, result.samples, strict=True):
        mean, covariance, _ = feature_statistics(features(samples))
        for name, found in (("teacher", row.frechet_to_teacher), ("data", row.frechet_to_data)):
            expected = frechet_distance(mean, covariance, *statistics[name][:2])
            assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["load_demo_features", "load_demo_statistics"])
def test_missing_files_are_found_before_the_long_work(monkeypatch, name):
    def missing(*args):
        raise FileNotFoundError("no such file")

    def reached(*args, **kwargs):
        raise AssertionError("sampling began")

    monkeypatch.setattr(f"gas_ext.cli.demo_run.{name}", missing)
    monkeypatch.setattr("gas_ext.cli.demo_run.draw_samples", reached)
    with pytest.raises(FileNotFoundError):
        run_demo(TINY)


def test_numbers_that_are_not_finite_are_null_in_the_files(result, tmp_path):
    nan = math.nan
    training = dataclasses.replace(result.training, losses=[nan, 0.5], rejected=1)
    row = dataclasses.replace(
        result.rows[2], l1_to_teacher=nan, frechet_to_teacher=None, frechet_to_data=None
    )
    candidates = {name: nan for name in result.candidates}
    broken = dataclasses.replace(
        result, training=training, rows=[*result.rows[:2], row], candidates=candidates
    )
    write_demo(broken, tmp_path)
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["training"]["losses"] == [None, 0.5]
    assert record["training"]["first_loss"] is None
    assert record["rows"][2]["l1_to_teacher"] is None
    assert set(record["classical_l1_on_training_seeds"].values()) == {None}
    assert record["classical_chosen_by"] == "smallest L1 to the teacher on training seeds"


def test_rows(result):
    assert [row.solver for row in result.rows] == ["teacher", "classical", "learned"]
    assert [row.nfe for row in result.rows] == [20, 2, 2]
    assert result.rows[0].l1_to_teacher == 0
    assert all(row.frechet_to_teacher > 0 and row.frechet_to_data > 0 for row in result.rows)
    # Orders 1 and 2 of DPM-Solver++, UniPC, DEIS, iPNDM and Heun, on four spacings.
    assert len(result.candidates) == 4 * (2 + 6 + 3 + 3 + 1)
    assert result.candidates[result.classical.description] == min(result.candidates.values())
    starts = {name: d for name, d in result.candidates.items() if name.startswith("DPM-Solver++")}
    assert len(starts) == 8
    assert starts[result.start.description] == min(starts.values())
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

    monkeypatch.setattr("gas_ext.cli.demo_run.plot_solver", fail)
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
