import math
import os
import shutil

import numpy as np
import pytest
import torch
from mixture import SCHEDULE, mixture_denoiser
from safetensors.torch import load_file
from toy_run import TRAIN, VALIDATION, make_toy_samples, run, toy_config, toy_denoiser

from gas_ext import Denoiser, GASSampler, GeneralizedSolver
from gas_ext._utils.noise import image_grid, to_uint8
from gas_ext._utils.progress import SilentReporter
from gas_ext.configs import Config, load_config
from gas_ext.samples import SampleBatch, TeacherSamples
from gas_ext.training import read_log, train


@pytest.fixture
def folder(tmp_path, toy_samples):
    (tmp_path / "samples").symlink_to(toy_samples)
    return tmp_path


class Told(SilentReporter):
    def __init__(self):
        self.lines = []

    def message(self, text):
        self.lines.append(text)


@pytest.mark.parametrize("loss", ["gs", "gas"])
def test_a_run_and_what_it_leaves(folder, loss):
    reporter = Told()
    result = run(folder, loss, {"iterations": 30}, reporter=reporter)
    assert result.iteration == 30
    assert result.signal is None
    assert result.best.loss < result.first.loss
    assert sorted(path.name for path in result.folder.iterdir() if path.name != "tensorboard") == [
        ".lock",
        "checkpoints",
        "config.yaml",
        "last.safetensors",
        "log.jsonl",
        "solver.safetensors",
        "start.safetensors",
    ]
    assert sorted(path.name for path in (result.folder / "checkpoints").iterdir()) == [
        "iteration-00000028.safetensors",
        "iteration-00000030.safetensors",
    ]
    config = load_config(result.folder / "config.yaml")
    assert (config.run.steps, config.run.loss) == (3, loss)
    assert f"Training starts from {result.started_from}." in reporter.lines


def test_the_best_solver_is_the_one_of_the_best_validation(folder):
    result = run(folder, "gs", {"iterations": 30})
    validations = [line for line in read_log(result.folder) if line["kind"] == "validation"]
    assert [line["iteration"] for line in validations] == [0, 5, 10, 15, 20, 25, 30]
    assert result.best.loss == min(line["loss"] for line in validations)
    batch = TeacherSamples.open(folder / "samples").batch(range(TRAIN, TRAIN + VALIDATION))
    for name, found in (("solver", result.best), ("last", result.last)):
        solver = GeneralizedSolver.load(result.folder / f"{name}.safetensors")
        with torch.no_grad():
            samples = GASSampler(solver, toy_denoiser())(batch.noise, batch.condition)
        assert (samples - batch.samples).abs().mean().item() == pytest.approx(found.l1, rel=1e-5)
        assert solver.training_summary["validation"]["iteration"] == found.iteration
        assert solver.teacher == {"name": "toy", "weights_hash": ""}
        assert solver.training_summary["start"] == result.started_from
        assert solver.training_summary["seeds"] == f"0-{TRAIN + VALIDATION - 1}"


def test_a_finished_run_is_left_as_it_is(folder):
    first = run(folder, "gs")
    before = {path: path.read_bytes() for path in first.folder.rglob("*.safetensors")}
    again = run(folder, "gs")
    assert {path: path.read_bytes() for path in first.folder.rglob("*.safetensors")} == before
    assert (again.best, again.last, again.first) == (first.best, first.last, first.first)
    assert len(read_log(first.folder)) == 20 + 5


def test_other_settings_are_refused_and_start_over_if_asked(folder):
    run(folder, "gs")
    with pytest.raises(ValueError, match=r"training\.seed 0, not 4"):
        run(folder, "gs", {"seed": 4})
    result = run(folder, "gs", {"seed": 4, "iterations": 3}, resume=False)
    assert result.iteration == 3
    assert {line["iteration"] for line in read_log(result.folder)} == {0, 1, 2, 3}


def test_other_settings_are_refused_before_samples_are_made(folder):
    run(folder, "gs", {"iterations": 2})
    with pytest.raises(ValueError, match=r"training\.seed 0, not 4"):
        train(
            toy_config({"iterations": 2, "seed": 4}), toy_denoiser(), folder / "run", samples=folder / "new"
        )
    assert not (folder / "new").exists()


def test_two_runs_in_one_folder_at_once(folder):
    def network(x, t, condition):
        if not attempts:
            attempts.append(1)
            with pytest.raises(ValueError, match=rf"run is in use by process {os.getpid()} on .*: wait"):
                run(folder, "gs", {"seed": 4}, resume=False)
        return mixture_denoiser(x, t, condition)

    attempts = []
    train(toy_config(), toy_denoiser(network), folder / "run", samples=folder / "samples")
    assert attempts
    assert {line["iteration"] for line in read_log(folder / "run")} == set(range(21))


@pytest.mark.parametrize("loss", ["gs", "gas"])
def test_a_longer_run_ends_as_if_it_had_been_so_long_from_the_start(folder, loss):
    whole = run(folder, loss, {"iterations": 12, "schedule": "constant"}, name="whole")
    # After a number that is validated anyway: the best solver is the best of the same ones.
    run(folder, loss, {"iterations": 10, "schedule": "constant"})
    longer = run(folder, loss, {"iterations": 12, "schedule": "constant"})
    assert longer.iteration == 12
    for name in ("solver.safetensors", "last.safetensors", "checkpoints/iteration-00000012.safetensors"):
        ours, theirs = (load_file(result.folder / name) for result in (longer, whole))
        assert ours.keys() == theirs.keys()
        assert [k for k in ours if not torch.equal(ours[k], theirs[k])] == []


def test_other_samples_and_another_teacher_are_refused(folder, tmp_path):
    run(folder, "gs")
    make_toy_samples(tmp_path / "others", count=30)
    with pytest.raises(ValueError, match=r"has samples '.*', not '.*'"):
        train(toy_config(), toy_denoiser(), folder / "run", samples=tmp_path / "others")
    stranger = toy_denoiser()
    stranger.weights_hash = "abc"
    with pytest.raises(ValueError, match=r"run has teacher 'toy', not 'toy abc'"):
        train(toy_config(), stranger, folder / "run", samples=folder / "samples")


@pytest.mark.parametrize("loss", ["gs", "gas"])
def test_accumulation_and_recomputation_change_nothing_but_rounding(folder, loss):
    whole = run(folder, loss, name="whole")
    parts = run(folder, loss, {"accumulation": 3, "recompute": True}, name="parts")
    for a, b in zip(whole.solver.parameters(), parts.solver.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6)


def test_recomputation_alone_changes_no_bit(folder):
    whole = run(folder, "gs", name="whole")
    recomputed = run(folder, "gs", {"recompute": True}, name="recomputed")
    for a, b in zip(whole.solver.parameters(), recomputed.solver.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_run_computes_what_train_solver_does(folder):
    from gas_ext.training import TrainingConfig, train_solver

    settings = {"iterations": 8, "start": "published", "validate_every": 8}
    result = run(folder, "gs", settings)
    batch = TeacherSamples.open(folder / "samples").batch(range(TRAIN))
    solver = GeneralizedSolver(SCHEDULE, 3, prediction_type="sample")
    train_solver(
        solver,
        toy_denoiser(),
        batch.noise,
        batch.samples,
        batch.condition,
        config=TrainingConfig(iterations=8, batch_size=4),
    )
    last = GeneralizedSolver.load(result.folder / "last.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(solver.parameters(), last.parameters(), strict=True))


def failing(first, last=10**9):
    """The toy's network, whose output is NaN from one gradient evaluation to another."""
    calls = 0

    def network(x, t, condition):
        nonlocal calls
        calls += torch.is_grad_enabled()
        return mixture_denoiser(x, t, condition) * (math.nan if first <= calls <= last else 1.0)

    return toy_denoiser(network)


def test_single_iterations_that_are_not_finite_are_counted(folder):
    result = train(toy_config(), failing(13, 18), folder / "run", samples=folder / "samples")
    solver = GeneralizedSolver.load(result.folder / "last.safetensors")
    assert solver.training_summary["rejected"] == 2
    losses = [line["loss"] for line in read_log(result.folder) if line["kind"] == "train"]
    assert [i for i, loss in enumerate(losses) if loss is None] == [4, 5]
    assert all(bool(parameter.isfinite().all()) for parameter in solver.parameters())


def test_a_run_that_is_never_finite_stops_with_the_last_good_state(folder):
    config = toy_config({"max_rejected": 3})
    with pytest.raises(RuntimeError, match="not finite in 3 iterations in a row: check"):
        train(config, failing(19), folder / "run", samples=folder / "samples")
    assert (folder / "run" / "checkpoints" / "iteration-00000009.safetensors").is_file()
    result = train(config, toy_denoiser(), folder / "run", samples=folder / "samples")
    assert result.iteration == 20
    assert result.best.loss < result.first.loss


def test_missing_samples_are_made(folder, tmp_path):
    config = toy_config({"iterations": 2})
    train(config, toy_denoiser(), folder / "run", samples=tmp_path / "made")
    made = TeacherSamples.open(tmp_path / "made")
    assert len(made) == TRAIN + VALIDATION
    assert torch.equal(made.batch([5]).samples, TeacherSamples.open(folder / "samples").batch([5]).samples)


def test_samples_have_a_usual_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = train(toy_config({"iterations": 1}), toy_denoiser(), "runs/toy", steps=2)
    assert len(TeacherSamples.open("samples/toy")) == TRAIN + VALIDATION
    assert result.solver.steps == 2


def test_samples_of_one_s_own(tmp_path):
    class Signals:
        sample_shape = (2, 8)

        def __len__(self):
            return 20

        def batch(self, indices, images):
            assert not images
            rows = [torch.randn(2, 8, generator=torch.Generator().manual_seed(int(i))) for i in indices]
            noise = torch.stack(rows)
            return SampleBatch(noise, noise.sign(), torch.tensor([int(i) % 3 for i in indices]), None, None)

    result = train(toy_config({"iterations": 2}), toy_denoiser(), tmp_path / "run", samples=Signals())
    assert result.iteration == 2


def test_guidance_must_be_that_of_the_samples(folder):
    solver = {**toy_config().teacher_solver.model_dump(), "guidance_scale": 2.0}
    with pytest.raises(ValueError, match=r"guidance scale None, but the config toy says 2\.0"):
        train(toy_config(teacher_solver=solver), toy_denoiser(), folder / "run", samples=folder / "samples")


def test_what_cannot_be_is_refused_before_anything_is_made(tmp_path):
    def attempt(config, denoiser=None, **options):
        train(config, denoiser or toy_denoiser(), tmp_path / "run", samples=tmp_path / "samples", **options)

    with pytest.raises(ValueError, match="has no adversarial section, which GAS needs"):
        attempt(toy_config().model_copy(update={"adversarial": None}), loss="gas")
    with pytest.raises(ValueError, match="There is no discriminator 'other'; use one of convolution"):
        attempt(toy_config(adversarial={"discriminator": "other", "settings": {}}), loss="gas")
    with pytest.raises(
        ValueError, match=r"A batch of 4 samples cannot .* training\.accumulation of at most 4"
    ):
        attempt(toy_config({"accumulation": 5}))
    with pytest.raises(ValueError, match=r"samples of shape \(2, 8\), but the config toy describes \(1, 3\)"):
        attempt(toy_config(space={"shape": [1, 3]}))
    with pytest.raises(ValueError, match=r"seeds\.teacher has 5 seeds, but training and validation need 18"):
        attempt(toy_config(seeds={"teacher": "0-4", "evaluation": "5-9"}))
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_processes_cannot_share(tmp_path, monkeypatch):
    from gas_ext._utils.processes import Processes

    three = Processes()
    three.count = 3
    monkeypatch.setattr("gas_ext.training.run.join_processes", lambda device: three)
    with pytest.raises(ValueError, match=r"4 samples cannot be shared equally by 3 process.* multiple of 3"):
        train(toy_config(), toy_denoiser(), tmp_path / "run", samples=tmp_path / "samples")
    assert list(tmp_path.iterdir()) == []


def test_the_discriminator_gets_labels_if_it_takes_them(folder, monkeypatch):
    from gas_ext.training.discriminators import ConvolutionDiscriminator

    seen = []
    forward = ConvolutionDiscriminator.forward
    monkeypatch.setattr(
        ConvolutionDiscriminator,
        "forward",
        lambda self, samples, labels=None: seen.append(labels) or forward(self, samples, labels),
    )
    conditional = {"settings": {"width": 4, "num_classes": 3}}
    train(
        toy_config({"iterations": 1}, conditional),
        toy_denoiser(),
        folder / "a",
        loss="gas",
        samples=folder / "samples",
    )
    assert seen
    assert all(labels is not None and len(labels) == 4 for labels in seen)
    seen.clear()
    run(folder, "gas", {"iterations": 1}, name="b")
    assert seen
    assert all(labels is None for labels in seen)


def test_a_discriminator_s_file(folder):
    from gas_ext.training.discriminators import build_discriminator, save_discriminator

    path = folder / "discriminator.safetensors"
    save_discriminator(build_discriminator("convolution", (2, 8), seed=5, width=4), path)
    config = toy_config({"iterations": 1}, {"discriminator": str(path), "settings": {}})
    train(config, toy_denoiser(), folder / "run", loss="gas", samples=folder / "samples")
    save_discriminator(build_discriminator("convolution", (1, 8), seed=5, width=4), path)
    with pytest.raises(
        ValueError,
        match=r"shape \(1, 8\), but toy with adversarial\.noise_levels=\[\] shows it \(2, 8\); name",
    ):
        train(config, toy_denoiser(), folder / "run", loss="gas", samples=folder / "samples")


def test_a_discriminator_that_is_shown_the_teacher_s_corrections(folder, monkeypatch):
    from gas_ext.training.discriminators import ConvolutionDiscriminator, TeacherView

    seen = set()
    forward = ConvolutionDiscriminator.forward
    monkeypatch.setattr(
        ConvolutionDiscriminator,
        "forward",
        lambda self, samples, labels=None: seen.add(samples.shape) or forward(self, samples, labels),
    )
    conditions = []
    call = TeacherView.__call__
    monkeypatch.setattr(
        TeacherView,
        "__call__",
        lambda self, samples, condition: conditions.append(condition) or call(self, samples, condition),
    )
    levels = {"noise_levels": [0.2, 1.0]}
    shown = run(folder, "gas", adversarial=levels)
    assert seen == {(4, 6, 8)}
    # Fakes and real ones for the discriminator; then the same real ones and the student's.
    assert len(conditions) == 4 * 20
    assert all(len(labels) == 4 for labels in conditions)
    assert shown.best.loss < shown.first.loss
    alone = run(folder, "gas", name="alone")
    assert not torch.equal(alone.solver.data_corrections, shown.solver.data_corrections)
    with pytest.raises(ValueError, match=r"adversarial\.noise_levels \[0\.2, 1\.0\], not \[\]"):
        run(folder, "gas")


def test_recomputing_what_the_discriminator_is_shown_changes_no_bit(folder):
    kept, recomputed = (
        run(folder, "gas", {"recompute": recompute}, str(recompute), {"noise_levels": [0.2]})
        for recompute in (False, True)
    )
    for a, b in zip(kept.solver.parameters(), recomputed.solver.parameters(), strict=True):
        assert torch.equal(a, b)


def images_config(**training) -> Config:
    return toy_config(
        {"iterations": 2, "validate_every": 1, "shown_images": 4, **training},
        name="images",
        space={"shape": [1, 8, 8]},
        conditions={"kind": "none"},
    )


@pytest.mark.parametrize("truncates", [False, True])
def test_pictures_of_images(tmp_path, truncates):
    denoiser = Denoiser.from_callable(
        mixture_denoiser, schedule=SCHEDULE, prediction_type="sample", sample_shape=(1, 8, 8), name="images"
    )
    denoiser.truncates = truncates
    result = train(images_config(), denoiser, tmp_path / "run", samples=tmp_path / "samples")
    assert sorted(path.name for path in (result.folder / "images").iterdir()) == [
        "grid-00000000.png",
        "grid-00000001.png",
        "grid-00000002.png",
        "solver-00000000.png",
        "solver-00000001.png",
        "solver-00000002.png",
        "teacher.png",
    ]
    from PIL import Image

    drawn = np.asarray(Image.open(result.folder / "images" / "teacher.png"))
    shown = TeacherSamples.open(tmp_path / "samples").batch(range(TRAIN, TRAIN + 4)).samples
    tiles = image_grid(shown, 2).repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert np.array_equal(drawn, to_uint8(tiles, truncate=truncates)[0])
    assert Image.open(result.folder / "images" / "grid-00000002.png").size == (44, 44)
    shutil.rmtree(tmp_path / "run")
    train(images_config(shown_images=0), denoiser, tmp_path / "run", samples=tmp_path / "samples")
    assert not (tmp_path / "run" / "images").exists()


def test_pictures_of_signals_are_of_the_solver_alone(folder):
    run(folder, "gs", {"iterations": 1, "shown_images": 4})
    names = sorted(path.name for path in (folder / "run" / "images").iterdir())
    assert names == ["solver-00000000.png", "solver-00000001.png"]


def test_latents_are_decoded_for_a_loss_on_images(tmp_path, monkeypatch):
    from gas_ext.training.losses import l1_loss

    seen = []

    def loss(prediction, target):
        seen.append(prediction.shape[1:])
        return l1_loss(prediction, target)

    monkeypatch.setattr("gas_ext.training.run.get_loss", lambda name, device: loss)
    denoiser = Denoiser.from_callable(
        mixture_denoiser,
        schedule=SCHEDULE,
        prediction_type="sample",
        sample_shape=(1, 4, 4),
        name="latents",
        decode=lambda x: x.repeat_interleave(2, -1).repeat_interleave(2, -2),
    )
    config = toy_config(
        {"iterations": 1, "loss": "lpips", "shown_images": 2},
        space={"shape": [1, 4, 4], "latent": True},
        conditions={"kind": "none"},
    )
    train(config, denoiser, tmp_path / "run", samples=tmp_path / "samples")
    assert set(seen) == {torch.Size([1, 8, 8])}
    assert (tmp_path / "run" / "images" / "teacher.png").is_file()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_autocast_runs(folder, precision):
    result = run(folder, "gas", {"iterations": 2, "autocast": precision}, adversarial={"noise_levels": [0.2]})
    assert math.isfinite(result.last.loss)


def test_the_network_stays_as_it_was(folder):
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, x, t, condition):
            return self.scale * mixture_denoiser(x, t, condition)

    network = Network()
    state = torch.get_rng_state()
    train(
        toy_config({"iterations": 2}),
        toy_denoiser(network),
        folder / "run",
        loss="gas",
        samples=folder / "samples",
    )
    assert network.scale.grad is None
    assert network.scale.requires_grad
    assert network.scale.item() == 1.0
    assert torch.equal(torch.get_rng_state(), state)
