import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from gas_ext import Denoiser, GASSampler, NoiseSchedule
from gas_ext._utils.noise import seed_labels, stacked_noise
from gas_ext.cli import app
from gas_ext.cli.options import check_device, local_device, read_labels, read_prompts
from gas_ext.configs import load_config
from gas_ext.samples import TeacherSamples
from gas_ext.solvers.registry import build_solver
from gas_ext.teachers.demo import load_demo_teacher
from gas_ext.training.baselines import classical_solver

DEMO = ("--config", "demo", "--seeds", "0-4", "--batch-size", "2", "--shard-size", "2")


def run(*arguments):
    return CliRunner().invoke(app, ["teach", *map(str, arguments)])


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teach") / "demo"
    outcome = run(*DEMO, "-o", folder)
    assert outcome.exit_code == 0, outcome.output
    assert outcome.stdout == f"{folder} is complete: 5 samples, 20 network evaluations each\n"
    return folder


def shards(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_samples_are_those_of_the_teacher_with_its_solver(demo_folder):
    teacher = load_demo_teacher()
    solver = classical_solver(teacher.schedule, 20, 3, "logsnr", 1e-3).solver
    batch = TeacherSamples.open(demo_folder, verify=True).batch(range(5))
    with torch.no_grad():
        expected = GASSampler(solver, teacher)(
            stacked_noise(range(5), teacher.sample_shape), seed_labels(range(5), 10)
        )
    torch.testing.assert_close(batch.samples, expected, atol=1e-4, rtol=0)
    assert batch.condition.tolist() == [0, 1, 2, 3, 4]
    assert batch.images is None
    TeacherSamples.open(demo_folder).check_teacher(teacher)


def test_torchrun_gives_the_same_bytes(demo_folder, tmp_path):
    folder = tmp_path / "two"
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [
            sys.executable,
            *launcher,
            "--rdzv-endpoint",
            "localhost:0",
            "-m",
            "gas_ext",
            "teach",
            *DEMO,
            "-o",
            folder,
        ],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert "process 2 of 2: done" in done.stderr
    assert f"{folder} is complete: 5 samples" in done.stdout
    assert shards(folder) == shards(demo_folder)
    made, expected = (json.loads((f / "manifest.json").read_text()) for f in (folder, demo_folder))
    assert made["shards"] == expected["shards"]
    assert made["settings"] == expected["settings"]


def test_verify_names_the_damage_and_repair_mends_it(demo_folder, tmp_path):
    folder = tmp_path / "demo"
    folder.mkdir()
    for path in demo_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    outcome = run("--verify", folder)
    assert (outcome.exit_code, outcome.stdout) == (0, f"{folder} is complete and intact\n")
    path = folder / "shard-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1000] ^= 4
    path.write_bytes(content)
    outcome = run("--verify", folder)
    assert outcome.exit_code == 1
    assert f"{path} does not match its SHA-256" in outcome.stderr
    assert "--repair" in outcome.stderr
    outcome = run(*DEMO, "-o", folder, "--repair")
    assert outcome.exit_code == 0, outcome.output
    assert shards(folder) == shards(demo_folder)


def test_other_settings_are_refused_in_one_sentence(demo_folder):
    outcome = run(*DEMO[:-1], "4", "-o", demo_folder)
    assert outcome.exit_code == 1
    assert "shard_size is 2 there and 4 here" in outcome.stderr
    assert len(outcome.stderr.strip().splitlines()) == 1


def toy_teacher(config):
    """A cheap teacher of the shape, conditions and kind of schedule that a config describes."""

    class Toy(Denoiser):
        def predict(self, x, t, condition):
            return torch.tanh(x)

        def encode_condition(self, values):
            return (
                torch.zeros(len(values))
                if self.condition_kind == "prompt"
                else super().encode_condition(values)
            )

        def unconditional_condition(self):
            return torch.zeros(()) if self.condition_kind == "prompt" else super().unconditional_condition()

    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    discrete = NoiseSchedule.vp_discrete(torch.cumprod(1 - betas, 0))
    return Toy(
        schedule=discrete if config.space.latent else NoiseSchedule.vp_linear(),
        prediction_type="epsilon",
        sample_shape=config.space.shape,
        name=config.name,
        condition_kind=config.conditions.kind,
        num_classes=config.conditions.num_classes,
    )


@pytest.fixture
def imported_teachers(tmp_path, monkeypatch):
    """Every config's teacher, imported into teachers/ as far as the command can see."""
    monkeypatch.chdir(tmp_path)
    for name in ("cifar10", "ffhq", "afhqv2", "lsun-bedroom", "imagenet", "coco"):
        folder = tmp_path / "teachers" / name
        folder.mkdir(parents=True)
        (folder / "teacher.json").write_text("{}")
    monkeypatch.setattr(
        "gas_ext.teachers.folder.load_teacher",
        lambda folder, device: toy_teacher(load_config(Path(folder).name)),
    )


@pytest.mark.parametrize(
    ("name", "nfe", "kind", "order", "variant", "t_eps", "guidance_scale"),
    [
        ("cifar10", 20, "UniPCSolver", 3, "bh1", 1e-4, None),
        ("ffhq", 20, "UniPCSolver", 3, "bh1", 1e-4, None),
        ("afhqv2", 20, "UniPCSolver", 3, "bh1", 1e-4, None),
        ("lsun-bedroom", 20, "UniPCSolver", 3, "bh2", 1e-3, None),
        ("imagenet", 10, "UniPCSolver", 3, "bh2", 1e-3, 2.0),
        ("coco", 5, "IPNDMSolver", 2, None, 1e-3, 7.5),
    ],
)
def test_teachers_of_the_paper(imported_teachers, name, nfe, kind, order, variant, t_eps, guidance_scale):
    prompts = ("--prompts", "p.txt") if name == "coco" else ()
    Path("p.txt").write_text("a dog\n\nzwei Hündchen\n", encoding="utf-8")
    outcome = run("-c", name, "--seeds", "1998-2001", "-o", "out", *prompts)
    assert outcome.exit_code == 0, outcome.output
    samples = TeacherSamples.open("out")
    settings = samples.settings
    assert samples.nfe == nfe
    solver = settings["solver"]
    assert (solver["kind"], solver["order"], solver.get("variant")) == (kind, order, variant)
    assert solver["timesteps"][-1] == pytest.approx(t_eps, rel=0.01)  # GITS's last sigma is rounded
    assert settings["guidance_scale"] == guidance_scale
    assert settings["image_shape"] is None
    condition = samples.batch(range(4)).condition
    if name == "imagenet":
        assert condition.tolist() == [998, 999, 0, 1]
    else:
        assert condition == (["a dog", "", "zwei Hündchen", "a dog"] if name == "coco" else None)


def test_steps_of_the_student_decide_on_those_of_the_teacher_of_coco(imported_teachers):
    Path("p.txt").write_text("a dog")
    outcome = run("-c", "coco", "--seeds", "0", "--prompts", "p.txt", "--student-steps", 6, "-o", "out")
    assert outcome.exit_code == 0, outcome.output
    assert TeacherSamples.open("out").nfe == 7
    outcome = run("-c", "coco", "--seeds", "0", "--prompts", "p.txt", "--student-steps", 9, "-o", "b")
    assert outcome.exit_code == 1
    assert "no GITS times for 10 steps" in outcome.stderr


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


def test_images_are_kept_where_the_loss_needs_them(tmp_path):
    text = (Path(load_config.__code__.co_filename).parent / "demo.yaml").read_text()
    config = tmp_path / "latent.yaml"
    text = text.replace("latent: false", "latent: true")
    for number, (loss, options, kept) in enumerate(
        [("lpips", (), True), ("perceptual", (), True), ("lpips", ("--no-images",), False), ("l1", (), False)]
    ):
        config.write_text(text.replace("loss: l1", f"loss: {loss}"))
        folder = tmp_path / str(number)
        outcome = run("-c", config, "--seeds", "0", "-o", folder, "--labels", "3", *options)
        assert outcome.exit_code == 0, outcome.output
        batch = TeacherSamples.open(folder).batch([0])
        assert (batch.images is not None) == kept
        assert batch.condition.tolist() == [3]
        if kept:
            assert torch.equal(batch.images, batch.samples)


def test_teacher_that_is_not_imported_is_named_with_its_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = run("-c", "cifar10", "-o", "out")
    assert outcome.exit_code == 1
    for part in (
        "teachers/cifar10",
        "gas-ext import cifar10 -o teachers/cifar10",
        "edm-cifar10-32x32-uncond-vp.pkl (223 MB)",
        "https://nvlabs-fi-cdn.nvidia.com/",
    ):
        assert part in outcome.stderr
    assert len(outcome.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("-c", "cifar10", "--teacher", "demo"), "samples of shape (1, 32, 32), but the config cifar10"),
        (("-c", "cifar11"), "no config 'cifar11'"),
        (("-c", "demo", "--seeds", "3-1"), "runs backward"),
        (("-c", "demo", "--seeds", ""), "Cannot read seeds"),
        (("-c", "demo", "--labels", "a"), "Cannot read labels from 'a'"),
        (("-c", "demo", "--labels", "11"), "from 0 to 9"),
        (("-c", "demo", "--prompts", "none.txt"), "no file of prompts none.txt"),
        (("-c", "demo", "--images"), "images already"),
        (("-c", "demo", "--autocast", "int8"), "expected float16 or bfloat16"),
        (("-c", "demo", "--device", "tpu"), "unknown device 'tpu'"),
    ],
)
def test_mistakes_are_told_in_one_sentence_before_any_work(tmp_path, arguments, reason):
    outcome = run(*arguments, "-o", tmp_path / "out")
    assert outcome.exit_code == 1
    assert reason in outcome.stderr
    assert len(outcome.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_a_file_is_refused_before_any_work(tmp_path):
    (tmp_path / "out").write_text("")
    outcome = run("-c", "demo", "-o", tmp_path / "out")
    assert outcome.exit_code == 1
    assert "is a file" in outcome.stderr
    assert (tmp_path / "out").read_text() == ""


def test_conditions_of_another_kind_are_refused(tmp_path):
    text = (Path(load_config.__code__.co_filename).parent / "demo.yaml").read_text()
    config = tmp_path / "c.yaml"
    config.write_text(text.replace("num_classes: 10", "num_classes: 12"))
    outcome = run("-c", config, "-o", tmp_path / "out")
    assert outcome.exit_code == 1
    assert "a number of classes of 10, but the config demo describes 12" in outcome.stderr


OWN = ("--teacher", "demo", "--solver", "unipc-2@quadratic", "--steps", "3", "--seeds", "0-2")


def test_a_teacher_needs_no_config(tmp_path):
    outcome = run(*OWN, "-o", tmp_path / "own")
    assert outcome.exit_code == 0, outcome.output
    assert "device: cpu\n" in outcome.stderr
    teacher, samples = load_demo_teacher(), TeacherSamples.open(tmp_path / "own")
    solver = build_solver("unipc-2@quadratic", teacher.schedule, 3, teacher.t_eps)
    with torch.no_grad():
        expected = GASSampler(solver, teacher)(
            stacked_noise(range(3), teacher.sample_shape), seed_labels(range(3), 10)
        )
    torch.testing.assert_close(samples.batch(range(3)).samples, expected, atol=1e-4, rtol=0)
    assert samples.nfe == 3


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("-c", "demo"),
        ("-o", "out"),
        ("--batch-size", "0"),
        (*OWN[:-2], "-o", "out"),
        (*OWN, "-c", "demo", "-o", "out"),
        (*OWN, "--student-steps", "5", "-o", "out"),
    ],
)
def test_wrong_usage(arguments):
    assert run(*arguments).exit_code == 2


def test_help_shows_examples_and_does_not_import_torch():
    outcome = run("--help")
    assert outcome.exit_code == 0
    assert "gas-ext teach --config demo" in " ".join(outcome.stdout.split())
    code = "import sys, gas_ext.cli.teach; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_labels_are_read_from_text_or_file(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("3, 1\n2 0-1\n")
    assert read_labels(str(path)) == [3, 1, 2, 0, 1]
    assert read_labels("0-2,7") == [0, 1, 2, 7]
    many = [n % 10 for n in range(500)]
    assert read_labels(",".join(map(str, many))) == many  # longer than a file's name may be
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


def test_the_best_device_is_the_default(monkeypatch):
    assert check_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert check_device("auto") == "cuda"


def test_every_process_of_torchrun_has_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert local_device("cuda") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert local_device("cuda") == "cuda:3"
    assert local_device("auto") == "cuda:3"
    assert local_device("cuda:1") == "cuda:1"
    assert local_device("cpu") == "cpu"
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(ValueError, match="torch sees 4"):
        local_device("cuda")
