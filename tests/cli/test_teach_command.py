import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import commands
import pytest
import torch

from gas_ext import Denoiser, GASSampler, NoiseSchedule
from gas_ext._utils.noise import seed_labels, stacked_noise
from gas_ext.cli.options import check_device, local_device, read_labels, read_prompts
from gas_ext.configs import config_text, load_config
from gas_ext.samples import TeacherSamples
from gas_ext.solvers.registry import build_solver
from gas_ext.teachers.demo import load_demo_teacher
from gas_ext.training.baselines import classical_solver

DEMO = ("--config", "demo", "--seeds", "0-4", "--batch-size", "2", "--shard-size", "2")
WITHOUT_CONFIG = ("--teacher", "demo", "--solver", "unipc-2@quadratic", "--steps", "3", "--seeds", "0-2")


def run(*arguments):
    return commands.run("teach", *arguments)


def succeed(*arguments) -> str:
    return commands.succeed("teach", *arguments)


def error_of(*arguments) -> str:
    return commands.error_of("teach", *arguments)


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teach") / "demo"
    text = succeed(*DEMO, "-o", folder)
    assert text == f"{folder} is complete: 5 samples, 20 network evaluations each\n"
    return folder


def shards(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def check_samples(samples, solver):
    """Compare with what the embedded teacher makes of the seeds with a solver."""
    teacher, seeds = load_demo_teacher(), samples.seeds
    with torch.no_grad():
        noise = stacked_noise(seeds, teacher.sample_shape)
        expected = GASSampler(solver, teacher)(noise, seed_labels(seeds, 10))
    batch = samples.batch(range(len(seeds)))
    torch.testing.assert_close(batch.samples, expected, atol=1e-4, rtol=0)
    assert batch.condition.tolist() == list(seeds)
    assert batch.images is None
    samples.check_teacher(teacher)


@pytest.mark.slow
def test_samples_are_those_of_the_teacher_with_its_solver(demo_folder):
    solver = classical_solver(load_demo_teacher().schedule, 20, 3, "logsnr", 1e-3).solver
    check_samples(TeacherSamples.open(demo_folder, verify=True), solver)


def test_a_teacher_needs_no_config(tmp_path):
    outcome = run(*WITHOUT_CONFIG, "-o", tmp_path / "own")
    assert outcome.exit_code == 0, outcome.output
    assert "device: cpu\n" in outcome.stderr
    teacher, samples = load_demo_teacher(), TeacherSamples.open(tmp_path / "own")
    check_samples(samples, build_solver("unipc-2@quadratic", teacher.schedule, 3, teacher.t_eps))
    assert samples.nfe == 3


@pytest.mark.process
def test_torchrun_gives_the_same_bytes(demo_folder, tmp_path):
    folder = tmp_path / "two"
    launcher = "-m torch.distributed.run --nproc-per-node 2 --rdzv-backend c10d --rdzv-endpoint localhost:0"
    done = subprocess.run(
        [sys.executable, *launcher.split(), "-m", "gas_ext", "teach", *DEMO, "-o", folder],
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"},
    )
    assert done.returncode == 0, done.stderr
    assert "process 2 of 2: done" in done.stderr
    assert f"{folder} is complete: 5 samples" in done.stdout
    assert shards(folder) == shards(demo_folder)
    made, expected = (json.loads((f / "manifest.json").read_text()) for f in (folder, demo_folder))
    assert made["shards"] == expected["shards"]
    assert made["settings"] == expected["settings"]


@pytest.mark.slow
def test_verify_names_the_damage_and_repair_removes_it(demo_folder, tmp_path):
    folder = tmp_path / "demo"
    shutil.copytree(demo_folder, folder)
    assert succeed("--verify", folder) == f"{folder} is complete and intact\n"
    path = folder / "shard-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1000] ^= 4
    path.write_bytes(content)
    outcome = run("--verify", folder)
    assert outcome.exit_code == 1
    assert f"{path} does not match its SHA-256" in outcome.stderr
    assert "--repair" in outcome.stderr
    succeed(*DEMO, "-o", folder, "--repair")
    assert shards(folder) == shards(demo_folder)


def test_other_settings_are_refused_in_one_sentence(demo_folder):
    assert "shard_size is 2 there and 4 here" in error_of(*DEMO[:-1], "4", "-o", demo_folder)


class Toy(Denoiser):
    """A cheap teacher with the shape, the conditions and the type of schedule that a config describes."""

    def __init__(self, config):
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        discrete = NoiseSchedule.vp_discrete(torch.cumprod(1 - betas, 0))
        super().__init__(
            schedule=discrete if config.space.latent else NoiseSchedule.vp_linear(),
            prediction_type="epsilon",
            sample_shape=config.space.shape,
            name=config.name,
            condition_kind=config.conditions.kind,
            num_classes=config.conditions.num_classes,
        )

    def predict(self, x, t, condition):
        return torch.tanh(x)

    def encode_condition(self, values):
        prompts = self.condition_kind == "prompt"
        return torch.zeros(len(values)) if prompts else super().encode_condition(values)

    def unconditional_condition(self):
        return torch.zeros(()) if self.condition_kind == "prompt" else super().unconditional_condition()


@pytest.fixture
def imported_teachers(tmp_path, monkeypatch):
    """Every config's teacher, imported into teachers/ as far as the command can see."""
    monkeypatch.chdir(tmp_path)
    for name in ("cifar10", "ffhq", "afhqv2", "lsun-bedroom", "imagenet", "coco"):
        folder = tmp_path / "teachers" / name
        folder.mkdir(parents=True)
        (folder / "teacher.json").write_text("{}")
    monkeypatch.setattr(
        "gas_ext.teachers.folder.load_teacher", lambda folder, device: Toy(load_config(Path(folder).name))
    )


@pytest.mark.parametrize(
    ("name", "nfe", "solver", "t_eps", "guidance_scale"),
    [
        ("cifar10", 20, ("UniPCSolver", 3, "bh1"), 1e-4, None),
        ("ffhq", 20, ("UniPCSolver", 3, "bh1"), 1e-4, None),
        ("afhqv2", 20, ("UniPCSolver", 3, "bh1"), 1e-4, None),
        ("lsun-bedroom", 20, ("UniPCSolver", 3, "bh2"), 1e-3, None),
        ("imagenet", 10, ("UniPCSolver", 3, "bh2"), 1e-3, 2.0),
        ("coco", 5, ("IPNDMSolver", 2, None), 1e-3, 7.5),
    ],
)
def test_teachers_of_the_paper(imported_teachers, name, nfe, solver, t_eps, guidance_scale):
    prompts = ("--prompts", "p.txt") if name == "coco" else ()
    Path("p.txt").write_text("a dog\n\nzwei Hündchen\n", encoding="utf-8")
    succeed("-c", name, "--seeds", "1998-2001", "-o", "out", *prompts)
    samples = TeacherSamples.open("out")
    settings = samples.settings
    assert samples.nfe == nfe
    found = settings["solver"]
    assert (found["kind"], found["order"], found.get("variant")) == solver
    assert found["timesteps"][-1] == pytest.approx(t_eps, rel=0.01)  # GITS's last sigma is rounded
    assert settings["guidance_scale"] == guidance_scale
    assert settings["image_shape"] is None
    condition = samples.batch(range(4)).condition
    if name == "imagenet":
        assert condition.tolist() == [998, 999, 0, 1]
    else:
        assert condition == (["a dog", "", "zwei Hündchen", "a dog"] if name == "coco" else None)


def test_nfe_of_the_teacher_of_coco_follows_from_that_of_the_student(imported_teachers):
    Path("p.txt").write_text("a dog")
    options = ("-c", "coco", "--seeds", "0", "--prompts", "p.txt", "--student-steps")
    succeed(*options, 6, "-o", "out")
    assert TeacherSamples.open("out").nfe == 7
    assert "no GITS times for 10 steps" in error_of(*options, 9, "-o", "b")


def test_seeds_of_the_config_are_the_default(imported_teachers, monkeypatch):
    seen = {}

    def generate(denoiser, solver, seeds, folder, **options):
        seen.update(options, seeds=seeds)
        raise KeyboardInterrupt

    monkeypatch.setattr("gas_ext.training.teacher_samples.generate_samples", generate)
    outcome = run("-c", "cifar10", "-o", "out")
    assert outcome.exit_code == 130
    assert "to resume after the last finished shard" in outcome.stderr
    assert seen["seeds"] == list(range(50_000))
    assert (seen["images"], seen["guidance_scale"], seen["autocast"]) == (False, None, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "options", "stored"),
    [("lpips", (), True), ("perceptual", (), True), ("lpips", ("--no-images",), False), ("l1", (), False)],
)
def test_images_are_stored_if_the_loss_needs_them(tmp_path, loss, options, stored):
    config = load_config("demo", [f"training.loss={loss}", "space.latent=true"])
    (tmp_path / "latent.yaml").write_text(config_text(config))
    command = ("-c", tmp_path / "latent.yaml", "--seeds", "0", "-o", tmp_path / "out", "--labels", "3")
    succeed(*command, *options)
    batch = TeacherSamples.open(tmp_path / "out").batch([0])
    assert (batch.images is not None) == stored
    assert batch.condition.tolist() == [3]
    if stored:
        assert torch.equal(batch.images, batch.samples)


def test_a_teacher_that_is_not_imported_is_named_with_its_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = error_of("-c", "cifar10", "-o", "out")
    for part in (
        "gas-ext import cifar10 -o teachers/cifar10",
        "edm-cifar10-32x32-uncond-vp.pkl (223 MB)",
        "https://nvlabs-fi-cdn.nvidia.com/",
    ):
        assert part in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("-c", "cifar10", "--teacher", "demo"), "sample shape (1, 32, 32), but the config cifar10"),
        (("-c", "cifar11"), "no config 'cifar11'"),
        (("-c", "demo", "--seeds", "3-1"), "backward"),
        (("-c", "demo", "--seeds", ""), "Cannot read seeds"),
        (("-c", "demo", "--labels", "a"), "Cannot read labels from 'a'"),
        (("-c", "demo", "--labels", "11"), "from 0 to 9"),
        (("-c", "demo", "--prompts", "none.txt"), "no file of prompts none.txt"),
        (("-c", "demo", "--images"), "images already"),
        (("-c", "demo", "--autocast", "int8"), "expected float16 or bfloat16"),
        (("-c", "demo", "--device", "tpu"), "Device 'tpu' is unknown"),
    ],
)
def test_errors_are_one_sentence_before_any_work(tmp_path, arguments, reason):
    assert reason in error_of(*arguments, "-o", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_not_an_output_folder(tmp_path):
    (tmp_path / "out").write_text("")
    assert "is a file" in error_of("-c", "demo", "-o", tmp_path / "out")
    assert (tmp_path / "out").read_text() == ""


def test_another_number_of_classes_is_refused(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(config_text(load_config("demo")).replace("num_classes: 10", "num_classes: 12"))
    error = error_of("-c", config, "-o", tmp_path / "out")
    assert "number of classes 10, but the config demo has 12" in error


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("-c", "demo"),
        ("-o", "out"),
        ("--batch-size", "0"),
        (*WITHOUT_CONFIG[:-2], "-o", "out"),
        (*WITHOUT_CONFIG, "-c", "demo", "-o", "out"),
        (*WITHOUT_CONFIG, "--student-steps", "5", "-o", "out"),
    ],
)
def test_wrong_usage(arguments):
    assert run(*arguments).exit_code == 2


def test_labels_are_read_from_text_or_file(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("3, 1\n2 0-1\n")
    assert read_labels(str(path)) == [3, 1, 2, 0, 1]
    assert read_labels("0-2,7") == [0, 1, 2, 7]
    many = [n % 10 for n in range(500)]
    assert read_labels(",".join(map(str, many))) == many  # longer than a file name can be
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="Cannot read labels"):
        read_labels(str(path))


def test_prompts_are_lines(tmp_path):
    path = tmp_path / "prompts.txt"
    for content, lines in (
        ("a\nb", ["a", "b"]),
        ("a\n\n b \n", ["a", "", " b "]),
        ("a\r\nb\r\n", ["a", "b"]),
        ("\ufeffé\u2028ü\n", ["é\u2028ü"]),
        ("\n", [""]),
        ("", []),
    ):
        path.write_bytes(content.encode())
        assert read_prompts(path) == lines
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_prompts(path)


def test_devices(monkeypatch):
    assert check_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert check_device("auto") == local_device("cuda") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "3")  # each process of torchrun has its own GPU
    assert local_device("cuda") == local_device("auto") == "cuda:3"
    assert local_device("cuda:1") == "cuda:1"
    assert local_device("cpu") == "cpu"
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(ValueError, match="torch sees 4"):
        local_device("cuda")
    with pytest.raises(ValueError, match="'mps' is not supported"):
        check_device("mps")
