import math
import os
import shutil

import numpy as np
import pytest
import torch
from mixture import SCHEDULE, mixture_denoiser
from PIL import Image
from safetensors.torch import load_file
from toy_run import TRAIN, VALIDATION, close, make_toy_samples, run, same, toy_config, toy_denoiser

from gas_ext import Denoiser, GASSampler, GeneralizedSolver
from gas_ext._utils.noise import image_grid, to_uint8
from gas_ext._utils.processes import Processes
from gas_ext._utils.progress import LogReporter
from gas_ext.configs import load_config
from gas_ext.samples import SampleBatch, TeacherSamples
from gas_ext.training import TrainingConfig, read_log, train, train_solver
from gas_ext.training.discriminators import (
    ConvolutionDiscriminator,
    TeacherView,
    build_discriminator,
    save_discriminator,
)
from gas_ext.training.losses import l1_loss


def names_in(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "tensorboard")


def iterations(folder, kind):
    return [line["iteration"] for line in read_log(folder) if line["kind"] == kind]


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["gs", "gas"])
def test_a_run_and_its_files(folder, loss):
    lines = []
    result = run(folder, loss, {"iterations": 30}, reporter=LogReporter(lines.append))
    assert (result.iteration, result.signal) == (30, None)
    assert result.best.loss < result.first.loss
    assert names_in(result.folder) == [
        ".lock",
        "checkpoints",
        "config.yaml",
        "last.safetensors",
        "log.jsonl",
        "solver.safetensors",
        "start.safetensors",
    ]
    stored = ["iteration-00000028.safetensors", "iteration-00000030.safetensors"]
    assert names_in(result.folder / "checkpoints") == stored
    config = load_config(result.folder / "config.yaml")
    assert (config.run.steps, config.run.loss) == (3, loss)
    assert any(f"Training starts from {result.started_from}." in line for line in lines)


@pytest.mark.slow
def test_the_best_solver_is_the_one_of_the_best_validation(folder):
    result = run(folder, "gs", {"iterations": 30})
    assert iterations(result.folder, "validation") == [0, 5, 10, 15, 20, 25, 30]
    losses = [line["loss"] for line in read_log(result.folder) if line["kind"] == "validation"]
    assert result.best.loss == min(losses)
    batch = TeacherSamples.open(folder / "samples").batch(range(TRAIN, TRAIN + VALIDATION))
    for name, validation in (("solver", result.best), ("last", result.last)):
        solver = GeneralizedSolver.load(result.folder / f"{name}.safetensors")
        with torch.no_grad():
            samples = GASSampler(solver, toy_denoiser())(batch.noise, batch.condition)
        assert (samples - batch.samples).abs().mean().item() == pytest.approx(validation.l1, rel=1e-5)
        assert solver.training_summary["validation"]["iteration"] == validation.iteration
        assert solver.teacher == {"name": "toy", "weights_hash": ""}
        assert solver.training_summary["start"] == result.started_from
        assert solver.training_summary["seeds"] == f"0-{TRAIN + VALIDATION - 1}"


@pytest.mark.slow
def test_a_finished_run_stays_unchanged(folder):
    first = run(folder, "gs")
    before = {path: path.read_bytes() for path in first.folder.rglob("*.safetensors")}
    again = run(folder, "gs")
    assert {path: path.read_bytes() for path in first.folder.rglob("*.safetensors")} == before
    assert (again.best, again.last, again.first) == (first.best, first.last, first.first)
    assert len(read_log(first.folder)) == 20 + 5


@pytest.mark.slow
def test_other_settings_are_refused_before_samples_are_made_and_can_start_over(folder):
    run(folder, "gs")
    config = toy_config({"seed": 4})
    with pytest.raises(ValueError, match=r"training\.seed 0, not 4"):
        train(config, toy_denoiser(), folder / "run", samples=folder / "new")
    assert not (folder / "new").exists()
    result = run(folder, "gs", {"seed": 4, "iterations": 3}, resume=False)
    assert result.iteration == 3
    assert set(iterations(result.folder, "train")) == {1, 2, 3}


def test_two_runs_in_one_folder_at_once(folder):
    def network(x, t, condition):
        if not attempts:
            attempts.append(1)
            with pytest.raises(ValueError, match=rf"run is in use by process {os.getpid()} on .*; wait"):
                run(folder, "gs", {"seed": 4}, resume=False)
        return mixture_denoiser(x, t, condition)

    attempts = []
    train(toy_config(), toy_denoiser(network), folder / "run", samples=folder / "samples")
    assert attempts
    assert iterations(folder / "run", "train") == list(range(1, 21))


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["gs", "gas"])
def test_an_extended_run_ends_as_if_it_had_been_that_long_from_the_start(folder, loss):
    whole = run(folder, loss, {"iterations": 12, "schedule": "constant"}, name="whole")
    # After an iteration that is validated anyway: the best solver is the best of the same ones.
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


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["gs", "gas"])
def test_accumulation_and_recomputation_change_only_rounding(folder, loss):
    whole = run(folder, loss, name="whole")
    parts = run(folder, loss, {"accumulation": 3, "recompute": True}, name="parts")
    assert close(whole.solver, parts.solver)


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "noise_levels"), [("gs", []), ("gas", [0.2])])
def test_recomputation_alone_changes_no_bit(folder, loss, noise_levels):
    stored, recomputed = (
        run(folder, loss, {"recompute": recompute}, str(recompute), {"noise_levels": noise_levels})
        for recompute in (False, True)
    )
    assert same(stored.solver, recomputed.solver)


def test_a_run_and_train_solver_give_the_same_bits(folder):
    result = run(folder, "gs", {"iterations": 8, "start": "published", "validate_every": 8})
    noise, samples, condition, _, _ = TeacherSamples.open(folder / "samples").batch(range(TRAIN))
    solver = GeneralizedSolver(SCHEDULE, 3, prediction_type="sample")
    config = TrainingConfig(iterations=8, batch_size=4)
    train_solver(solver, toy_denoiser(), noise, samples, condition, config=config)
    assert same(solver, GeneralizedSolver.load(result.folder / "last.safetensors"))


def failing(first, last=10**9):
    """The toy's network, whose output is NaN from one evaluation with gradient to another."""
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


@pytest.mark.slow
def test_a_run_that_is_no_longer_finite_stops_with_the_last_good_state(folder):
    config = toy_config({"max_rejected": 3})
    with pytest.raises(RuntimeError, match="not finite in 3 iterations in a row; check"):
        train(config, failing(19), folder / "run", samples=folder / "samples")
    assert (folder / "run" / "checkpoints" / "iteration-00000009.safetensors").is_file()
    result = train(config, toy_denoiser(), folder / "run", samples=folder / "samples")
    assert result.iteration == 20
    assert result.best.loss < result.first.loss


def test_missing_samples_are_made_in_the_default_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "samples").rename(folder / "expected")
    result = train(toy_config({"iterations": 1}), toy_denoiser(), "runs/toy", steps=2)
    made, expected = TeacherSamples.open("samples/toy"), TeacherSamples.open("expected")
    assert len(made) == TRAIN + VALIDATION
    assert torch.equal(made.batch([5]).samples, expected.batch([5]).samples)
    assert result.solver.steps == 2


def test_custom_samples(tmp_path):
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
    with pytest.raises(ValueError, match=r"guidance scale None, but the config toy has 2\.0"):
        train(toy_config(teacher_solver=solver), toy_denoiser(), folder / "run", samples=folder / "samples")


@pytest.mark.parametrize(
    ("config", "loss", "message"),
    [
        (
            toy_config().model_copy(update={"adversarial": None}),
            "gas",
            "has no adversarial section, which GAS needs",
        ),
        (
            toy_config(adversarial={"discriminator": "other", "settings": {}}),
            "gas",
            "There is no discriminator 'other'; use one of convolution",
        ),
        (
            toy_config({"accumulation": 5}),
            "gs",
            r"A batch of 4 samples cannot .* training\.accumulation of at most 4",
        ),
        (
            toy_config(space={"shape": [1, 3]}),
            "gs",
            r"samples of shape \(2, 8\), but the config toy describes \(1, 3\)",
        ),
        (
            toy_config(seeds={"teacher": "0-4", "evaluation": "5-9"}),
            "gs",
            r"seeds\.teacher has 5 seeds, but training and validation need 18",
        ),
    ],
)
def test_impossible_runs_are_refused_before_anything_is_written(tmp_path, config, loss, message):
    with pytest.raises(ValueError, match=message):
        train(config, toy_denoiser(), tmp_path / "run", samples=tmp_path / "samples", loss=loss)
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_processes_cannot_share(tmp_path, monkeypatch):
    three = Processes()
    three.count = 3
    monkeypatch.setattr("gas_ext.training.run.join_processes", lambda device: three)
    with pytest.raises(ValueError, match=r"4 samples cannot be shared equally by 3 process.* multiple of 3"):
        train(toy_config(), toy_denoiser(), tmp_path / "run", samples=tmp_path / "samples")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def shown(monkeypatch):
    """Samples and labels that discriminators get."""
    seen = []
    forward = ConvolutionDiscriminator.forward

    def record(self, samples, labels=None):
        seen.append((samples, labels))
        return forward(self, samples, labels)

    monkeypatch.setattr(ConvolutionDiscriminator, "forward", record)
    return seen


def test_the_discriminator_gets_labels_if_it_takes_them(folder, shown):
    conditional = {"settings": {"width": 4, "num_classes": 3}}
    run(folder, "gas", {"iterations": 1}, "conditional", conditional)
    assert shown
    assert all(labels is not None and len(labels) == 4 for _, labels in shown)
    shown.clear()
    run(folder, "gas", {"iterations": 1}, "unconditional")
    assert shown
    assert all(labels is None for _, labels in shown)


def test_a_discriminator_from_a_file(folder):
    path = folder / "discriminator.safetensors"
    save_discriminator(build_discriminator("convolution", (2, 8), seed=5, width=4), path)
    adversarial = {"discriminator": str(path), "settings": {}}
    run(folder, "gas", {"iterations": 1}, adversarial=adversarial)
    save_discriminator(build_discriminator("convolution", (1, 8), seed=5, width=4), path)
    message = r"shape \(1, 8\), but gets \(2, 8\) from toy with adversarial\.noise_levels=\[\]; use another"
    with pytest.raises(ValueError, match=message):
        run(folder, "gas", {"iterations": 1}, adversarial=adversarial)


@pytest.mark.slow
def test_a_discriminator_with_the_teacher_s_corrections(folder, monkeypatch, shown):
    conditions = []
    call = TeacherView.__call__
    monkeypatch.setattr(
        TeacherView,
        "__call__",
        lambda self, samples, condition: conditions.append(condition) or call(self, samples, condition),
    )
    corrected = run(folder, "gas", adversarial={"noise_levels": [0.2, 1.0]})
    assert {samples.shape for samples, _ in shown} == {(4, 6, 8)}
    # Fakes and real samples for the discriminator; then the same real samples and the student's.
    assert len(conditions) == 4 * 20
    assert all(len(labels) == 4 for labels in conditions)
    assert corrected.best.loss < corrected.first.loss
    alone = run(folder, "gas", name="alone")
    assert not torch.equal(alone.solver.data_corrections, corrected.solver.data_corrections)
    with pytest.raises(ValueError, match=r"adversarial\.noise_levels \[0\.2, 1\.0\], not \[\]"):
        run(folder, "gas")


def toy_images(shape, decode=None):
    return Denoiser.from_callable(
        mixture_denoiser,
        schedule=SCHEDULE,
        prediction_type="sample",
        sample_shape=shape,
        name="images",
        decode=decode,
    )


@pytest.mark.slow
@pytest.mark.parametrize("truncates", [False, True])
def test_pictures_of_images(tmp_path, truncates):
    def train_images(shown):
        settings = {"iterations": 2, "validate_every": 1, "shown_images": shown}
        config = toy_config(settings, space={"shape": [1, 8, 8]}, conditions={"kind": "none"})
        train(config, denoiser, tmp_path / "run", samples=tmp_path / "samples")
        return tmp_path / "run" / "images"

    denoiser = toy_images((1, 8, 8))
    denoiser.truncates = truncates
    pictures = train_images(4)
    drawn = [f"{kind}-0000000{iteration}.png" for kind in ("grid", "solver") for iteration in range(3)]
    assert names_in(pictures) == [*drawn, "teacher.png"]
    teacher = np.asarray(Image.open(pictures / "teacher.png"))
    samples = TeacherSamples.open(tmp_path / "samples").batch(range(TRAIN, TRAIN + 4)).samples
    tiles = image_grid(samples, 2).repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert np.array_equal(teacher, to_uint8(tiles, truncate=truncates)[0])
    assert Image.open(pictures / "grid-00000002.png").size == (44, 44)
    shutil.rmtree(tmp_path / "run")
    assert not train_images(0).exists()


@pytest.mark.slow
def test_pictures_of_signals_are_of_the_solver_alone(folder):
    run(folder, "gs", {"iterations": 1, "shown_images": 4})
    assert names_in(folder / "run" / "images") == ["solver-00000000.png", "solver-00000001.png"]


@pytest.mark.slow
def test_latents_are_decoded_for_a_loss_on_images(tmp_path, monkeypatch):
    seen = []

    def loss(prediction, target):
        seen.append(prediction.shape[1:])
        return l1_loss(prediction, target)

    monkeypatch.setattr("gas_ext.training.run.get_loss", lambda name, device: loss)
    denoiser = toy_images((1, 4, 4), lambda x: x.repeat_interleave(2, -1).repeat_interleave(2, -2))
    config = toy_config(
        {"iterations": 1, "loss": "lpips", "shown_images": 2},
        space={"shape": [1, 4, 4], "latent": True},
        conditions={"kind": "none"},
    )
    train(config, denoiser, tmp_path / "run", samples=tmp_path / "samples")
    assert set(seen) == {torch.Size([1, 8, 8])}
    assert (tmp_path / "run" / "images" / "teacher.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_autocast_runs(folder, precision):
    result = run(folder, "gas", {"iterations": 2, "autocast": precision}, adversarial={"noise_levels": [0.2]})
    assert math.isfinite(result.last.loss)


def test_network_and_random_numbers_stay_unchanged(folder):
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, x, t, condition):
            return self.scale * mixture_denoiser(x, t, condition)

    network = Network()
    state = torch.get_rng_state()
    denoiser, samples = toy_denoiser(network), folder / "samples"
    train(toy_config({"iterations": 2}), denoiser, folder / "run", loss="gas", samples=samples)
    assert network.scale.grad is None
    assert network.scale.requires_grad
    assert network.scale.item() == 1.0
    assert torch.equal(torch.get_rng_state(), state)
