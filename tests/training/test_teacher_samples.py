import pickle

import pytest
import torch
from mixture import SCHEDULE
from toy_run import TRAIN, VALIDATION, make_toy_samples, toy_config, toy_denoiser

from gas_ext import Denoiser, GASSampler
from gas_ext._utils.noise import stacked_noise
from gas_ext._utils.processes import Processes
from gas_ext._utils.progress import LogReporter, SilentReporter
from gas_ext.samples import TeacherSamples, convert_dataset, generate_samples
from gas_ext.training import train
from gas_ext.training.teacher_samples import make_samples, open_samples

SOLVER = toy_config().teacher_solver.model_dump()


def opened(folder, count, config=None, reporter=None):
    return open_samples(
        config or toy_config(),
        toy_denoiser(),
        folder,
        steps=3,
        count=count,
        processes=Processes(),
        reporter=reporter or SilentReporter(),
    )


def test_samples_are_made_with_the_config_s_solver_and_guidance(tmp_path):
    config, denoiser = toy_config(teacher_solver={**SOLVER, "guidance_scale": 2.0}), toy_denoiser()
    samples = make_samples(config, denoiser, [3, 7], tmp_path, student_steps=3, labels=[1, 2])
    sampler = GASSampler(config.teacher_solver.build(SCHEDULE, 3), denoiser, guidance_scale=2.0)
    with torch.no_grad():
        expected = sampler(stacked_noise([3, 7], (2, 8)), torch.tensor([1, 2]))
    torch.testing.assert_close(samples.batch([0, 1]).samples, expected)
    assert samples.settings["guidance_scale"] == 2.0


@pytest.mark.slow
def test_gs_then_gas_in_one_folder_of_samples(tmp_path):
    config = toy_config({"train_samples": {"gs": 12, "gas": 30}, "iterations": 6})

    def run(loss):
        folder, samples = tmp_path / loss, tmp_path / "samples"
        return train(config, toy_denoiser(), folder, loss=loss, samples=samples)

    first = run("gs")
    before = {path: path.read_bytes() for path in (tmp_path / "samples").glob("*.safetensors")}
    assert len(TeacherSamples.open(tmp_path / "samples")) == 12 + VALIDATION
    assert run("gas").iteration == 6
    assert len(TeacherSamples.open(tmp_path / "samples", verify=True)) == 30 + VALIDATION
    assert all(path.read_bytes() == content for path, content in before.items())
    again = run("gs")  # the finished run knows its samples in the folder that has grown
    assert (again.last, again.first) == (first.last, first.first)


@pytest.mark.parametrize("begun", [4, TRAIN + VALIDATION, 40])
def test_a_folder_is_resumed_with_its_own_settings(tmp_path, begun):
    solver = toy_config().teacher_solver.build(SCHEDULE, 3)
    options = {"batch_size": 2, "shard_size": 2, "autocast": torch.bfloat16, "images": True}
    generate_samples(toy_denoiser(), solver, range(begun), tmp_path, rank=0, world_size=2, **options)
    samples = opened(tmp_path, TRAIN + VALIDATION)
    assert len(samples) == max(begun, TRAIN + VALIDATION)
    assert samples.settings["batch_size"] == samples.settings["shard_size"] == 2
    assert samples.settings["autocast"] == "bfloat16"
    assert samples.batch([begun - 1]).images is not None


def test_seeds_that_the_config_does_not_have_are_refused(tmp_path):
    make_toy_samples(tmp_path, count=6)
    with pytest.raises(ValueError, match=r'seeds is "0-5" there and "10-27" here'):
        opened(tmp_path, 18, toy_config(seeds={"teacher": "10-99", "evaluation": "100-199"}))
    with pytest.raises(ValueError, match=r"seeds\.teacher has 90 seeds, but .* need 101"):
        opened(tmp_path, 101, toy_config(seeds={"teacher": "10-99", "evaluation": "100-199"}))


def published(path, count):
    """Write samples of the toy as they are published, of signals and without conditions."""
    noise = stacked_noise(range(count), (2, 8))
    nothing = [None] * count
    content = {"noise": noise, "latents": nothing, "images": noise.tanh(), "condition": nothing}
    path.write_bytes(pickle.dumps(content))
    return path


def test_converted_data_sets_are_assumed_to_have_the_config_s_guidance(tmp_path):
    convert_dataset(published(tmp_path / "dataset.pkl", 8), tmp_path / "samples", range(20))
    denoiser = Denoiser.from_callable(
        lambda x, t, c: x.tanh(), schedule=SCHEDULE, prediction_type="sample", sample_shape=(2, 8), name="any"
    )

    def messages(guidance_scale, count=8):
        lines = []
        config = toy_config(
            teacher_solver={**SOLVER, "guidance_scale": guidance_scale}, conditions={"kind": "none"}
        )
        samples = open_samples(
            config,
            denoiser,
            tmp_path / "samples",
            steps=3,
            count=count,
            processes=Processes(),
            reporter=LogReporter(lines.append),
        )
        assert len(samples) == 8
        return lines

    assert messages(None) == []
    (line,) = messages(7.5, count=99)  # and are not extended
    assert line.startswith(
        f"{tmp_path / 'samples'} does not record how its samples were made; guidance scale 7.5"
    )
