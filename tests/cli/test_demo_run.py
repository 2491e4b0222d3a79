import json
import math
from dataclasses import replace

import pytest
import torch

from gas_ext import GASSampler, GeneralizedSolver
from gas_ext._utils.noise import seed_labels, stacked_noise
from gas_ext._utils.progress import SilentReporter
from gas_ext.cli import demo_run
from gas_ext.cli.demo_run import FILES, DemoConfig, run_demo
from gas_ext.evaluation import Cell, Comparison
from gas_ext.evaluation.judging import Numbers
from gas_ext.evaluation.metrics import feature_statistics, frechet_distance
from gas_ext.samples import SampleBatch
from gas_ext.teachers.demo import load_demo_features, load_demo_statistics, load_demo_teacher
from gas_ext.training import train_solver
from gas_ext.training.baselines import classical_solver, select_baseline

pytestmark = pytest.mark.slow

TINY = DemoConfig(steps=2, iterations=2, seed=3, train_samples=8, held_out_samples=20)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run the demo once, with one loss and one distance made NaN: record, folder, training data."""
    given = {}
    folder = tmp_path_factory.mktemp("demo") / "deep" / "gas-demo"

    def train(solver, denoiser, noise, target, labels, **settings):
        given.update(noise=noise, target=target, labels=labels)
        summary = train_solver(solver, denoiser, noise, target, labels, **settings)
        given.update(losses=summary.losses)
        return replace(summary, losses=[math.nan, *summary.losses])

    def select(*args, **settings):
        best, distances = select_baseline(*args, **settings)
        return best, [*distances[:-1], math.nan]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_run, "train_solver", train)
        patch.setattr(demo_run, "select_baseline", select)
        return run_demo(TINY, folder), folder, given


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


def test_training_sees_the_training_seeds_only(run):
    _, _, given = run
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
    for name in ("fit_start", "train_solver"):
        monkeypatch.setattr(demo_run, name, lambda solver, *args, **kwargs: started.append(solver))
    teacher = load_demo_teacher()
    classical = classical_solver(teacher.schedule, 3, order, spacing, teacher.t_eps)
    nothing = torch.empty(0)
    data = SampleBatch(nothing, nothing, nothing, None, None)
    demo_run.Demo(DemoConfig(steps=3), SilentReporter()).learn(classical, data)
    assert started[0] is started[1]
    expected = classical.solver.coefficients(teacher.prediction_type)
    found = started[0].coefficients()
    assert torch.equal(found.timesteps, expected.timesteps)
    for name in ("data", "state"):
        a, b = getattr(found.weights, name), getattr(expected.weights, name)
        assert torch.equal(a[:, : b.shape[1]], b)
        assert not a[:, b.shape[1] :].any()


def test_rows_are_of_the_held_out_seeds_and_of_the_saved_solver(run):
    record, folder, _ = run
    teacher = load_demo_teacher()
    guide = classical_solver(teacher.schedule, 20, 3, "logsnr", teacher.t_eps).solver
    learned = GeneralizedSolver.load(folder / "solver.safetensors", weights_hash=teacher.weights_hash)
    assert learned.teacher == {"name": teacher.name, "weights_hash": teacher.weights_hash}
    assert learned.prediction_type == teacher.prediction_type
    seeds = range(53_000, 53_020)
    assert record["held_out_seeds"] == [seeds[0], seeds[-1]]
    noise, labels = stacked_noise(seeds, teacher.sample_shape), seed_labels(seeds, teacher.num_classes)
    with torch.no_grad():
        target, samples = (GASSampler(solver, teacher)(noise, labels) for solver in (guide, learned))
    features, statistics = load_demo_features(), load_demo_statistics()
    for row, images in ((record["rows"][0], target), (record["rows"][2], samples)):
        assert row["l1_to_teacher"] == pytest.approx((images - target).abs().mean().item(), rel=1e-5)
        mean, covariance, _ = feature_statistics(features(images))
        for name in ("teacher", "data"):
            expected = frechet_distance(mean, covariance, *statistics[name][:2])
            assert row[f"frechet_to_{name}"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["load_demo_features", "load_demo_statistics"])
def test_missing_files_are_found_before_the_long_work(monkeypatch, tmp_path, name):
    def missing(*args):
        raise FileNotFoundError("no such file")

    def reached(*args, **kwargs):
        raise AssertionError("sampling began")

    monkeypatch.setattr(f"gas_ext.teachers.demo.{name}", missing)
    monkeypatch.setattr(demo_run, "draw_samples", reached)
    with pytest.raises(FileNotFoundError):
        run_demo(TINY, tmp_path / "gas-demo")


def test_numbers_that_are_not_finite_are_none(run):
    record, _, given = run
    assert record["training"]["losses"] == [None, *given["losses"]]
    assert record["training"]["first_loss"] is None
    assert list(record["classical_l1_on_training_seeds"].values())[-1] is None
    diverged = Cell("learned", "learned", "", Numbers(4, 1.5, {}, {}), torch.zeros(0))
    comparison = Comparison("", {}, "", 2, [diverged], None, [], 0)
    (row,) = demo_run.comparison_rows([comparison, comparison], ["learned"])
    assert [row[key] for key in ("l1_to_teacher", "frechet_to_teacher", "frechet_to_data")] == [None] * 3


def test_classical_solver_and_start_are_the_closest(run):
    record, _, _ = run
    assert [row["solver"] for row in record["rows"]] == ["teacher", "classical", "learned"]
    assert [row["nfe"] for row in record["rows"]] == [20, 2, 2]
    candidates = record["classical_l1_on_training_seeds"]
    # Orders 1 and 2 of DPM-Solver++, UniPC, DEIS, iPNDM and Heun, on four spacings.
    assert len(candidates) == 4 * (2 + 6 + 3 + 3 + 1)
    finite = {name: distance for name, distance in candidates.items() if distance is not None}
    assert finite[record["rows"][1]["description"]] == min(finite.values())
    starts = {name: distance for name, distance in finite.items() if name.startswith("DPM-Solver++")}
    assert len(starts) == 8
    assert starts[record["started_from"]] == min(starts.values())


def test_files(run):
    record, folder, _ = run
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert [path.name for path in folder.parent.iterdir()] == ["gas-demo"]
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(record))
    assert record["seed"] == 3
    assert record["feature_extractor"] == "fashion-cnn-64"
    assert record["versions"].keys() == {"gas_ext", "torch", "python"}


def test_failed_writing_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(demo_run, "plot_solver", fail)
    monkeypatch.setattr(demo_run, "select_baseline", lambda found, *args, **kwargs: (found[0], [0.0] * 60))
    with pytest.raises(OSError, match="disk full"):
        run_demo(replace(TINY, iterations=1), tmp_path / "gas-demo")
    assert list(tmp_path.iterdir()) == []
