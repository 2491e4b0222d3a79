import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from golden_data import GOLDEN
from typer.testing import CliRunner

from gas_ext import GeneralizedSolver
from gas_ext.cli import app
from gas_ext.cli.train import PresetOption
from gas_ext.configs import load_config
from gas_ext.solvers.presets import PRESETS
from gas_ext.training import read_log

DATA_SET = str(GOLDEN / "dataset/pixel.pkl")
FEW = ("training.train_samples=4", "training.validation_samples=2", "training.batch_size=2")
TINY = ["train", "--config", "demo", "--steps", "2", *(part for value in FEW for part in ("--set", value))]


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*arguments):
    return CliRunner().invoke(app, list(arguments))


def program(*arguments, launcher=("-m", "gas_ext"), **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *launcher, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


def test_from_nothing_to_a_picture(tmp_path):
    outcome = run(*TINY, "--iterations", "2", "-o", "runs/demo")
    assert outcome.exit_code == 0, outcome.output
    assert outcome.stdout.startswith("wrote runs/demo/solver.safetensors: 2 network evaluations, mean L1")
    assert (tmp_path / "samples/demo/manifest.json").is_file()
    assert (tmp_path / "runs/demo/images/grid-00000002.png").is_file()
    solver = GeneralizedSolver.load("runs/demo/solver.safetensors")
    assert solver.teacher["name"] == "fashion-mnist-32"
    outcome = run("sample", "--solver", "runs/demo/last.safetensors", "--seeds", "0-3", "--out", "grid.png")
    assert outcome.exit_code == 0, outcome.output


def test_gas_goes_on_and_repeats_from_its_own_config():
    options = [*TINY, "--loss", "gas", "--set", "training.shown_images=0"]
    outcome = run(*options, "--iterations", "3", "--seed", "5")
    assert outcome.exit_code == 0, outcome.output
    assert "wrote runs/demo-2-gas/solver.safetensors" in outcome.stdout
    again = run(*options, "--iterations", "3", "--seed", "5")
    assert (again.exit_code, again.stdout) == (0, outcome.stdout)
    assert len(read_log("runs/demo-2-gas")) == 3 + 2
    config = load_config("runs/demo-2-gas/config.yaml")
    assert (config.training.seed, config.run.loss, config.run.steps) == (5, "gas", 2)
    outcome = run("train", "--config", "runs/demo-2-gas/config.yaml", "-o", "runs/again")
    assert outcome.exit_code == 0, outcome.output
    with open("runs/demo-2-gas/last.safetensors", "rb") as a, open("runs/again/last.safetensors", "rb") as b:
        assert a.read() == b.read()
    outcome = run(*options, "--iterations", "4", "-o", "runs/again")
    assert outcome.exit_code == 1
    assert "has training.seed 5, not 0, training.iterations.gas 3, not 4" in outcome.stderr
    assert len(outcome.stderr.strip().splitlines()) == 1
    outcome = run(*options, "--iterations", "1", "--no-resume", "-o", "runs/again")
    assert outcome.exit_code == 0, outcome.output
    assert {line["iteration"] for line in read_log("runs/again")} == {0, 1}


def test_the_rivals_of_gs(tmp_path):
    options = [*TINY, "--set", "training.shown_images=0", "--iterations", "2"]
    outcome = run(*options, "--solver", "ld3")
    assert outcome.exit_code == 0, outcome.output
    assert "wrote runs/demo-2-gs-ld3/solver.safetensors" in outcome.stdout
    solver = GeneralizedSolver.load("runs/demo-2-gs-ld3/last.safetensors")
    assert solver.preset == "ld3"
    assert solver.data_corrections.abs().max() == solver.state_corrections.abs().max() == 0
    assert load_config("runs/demo-2-gs-ld3/config.yaml").student.preset == "ld3"
    outcome = run(*options, "--solver", "s4s", "--loss", "gas", "-o", "runs/demo-2-gs-ld3")
    assert outcome.exit_code == 1
    assert "student.preset 'ld3', not 's4s'" in outcome.stderr
    outcome = run(*options, "--solver", "s4s", "--loss", "gas")
    assert outcome.exit_code == 0, outcome.output
    start, last = (
        GeneralizedSolver.load(f"runs/demo-2-gas-s4s/{name}.safetensors") for name in ("start", "last")
    )
    assert torch.equal(start.timesteps(), last.timesteps())
    assert not torch.equal(start.data_corrections, last.data_corrections)


def test_every_kind_of_solver_can_be_asked_for():
    assert [preset.value for preset in PresetOption] == list(PRESETS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "training.batch_size=0"], "training.batch_size is 0: input should be greater"),
        (["--set", "training.batchsize=8"], "training.batchsize is not a known setting; remove it."),
        (["--set", "student.t_eps=x"], "student.t_eps is 'x': input should be a valid number."),
        (["--set", "training"], "Cannot set 'training': write section.name=value"),
        (["--autocast", "float8"], "training.autocast is 'float8': input should be 'bfloat16' or 'float16'."),
        (["--set", "training.start=best"], "expected published, classical, fitted, or a solver's file"),
        (["-o", "solver.safetensors"], "solver.safetensors is the name of a file; name a folder"),
        (["--device", "tpu"], "--device cpu"),
        (["--samples", DATA_SET], f"gas-ext import {DATA_SET} --config demo -o samples/demo"),
        (["--teacher", "nowhere"], "There is no imported teacher in nowhere: run gas-ext import demo"),
        (["--set", "training.accumulation=3"], "training.accumulation of at most 2."),
    ],
)
def test_what_cannot_be_is_told_in_one_line(tmp_path, arguments, message):
    outcome = run(*TINY, *arguments)
    assert outcome.exit_code == 1
    assert message in outcome.stderr
    assert len(outcome.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_that_is_not_imported():
    outcome = run("train", "--config", "cifar10", "--set", "training.batch_size=8")
    assert outcome.exit_code == 1
    assert "run gas-ext import cifar10 -o teachers/cifar10" in outcome.stderr


def test_numbers_as_people_write_them():
    for text, value in (("1e-3", 1e-3), ("0.5", 0.5), ("2", 2.0), ("null", None)):
        assert load_config("demo", [f"training.clip={text}"]).training.clip == value


def test_the_plan(tmp_path):
    outcome = run("train", "--config", "ffhq", "--loss", "gas", "--steps", "6", "--dry-run", "--json")
    assert outcome.exit_code == 0, outcome.output
    plan = json.loads(outcome.stdout)
    assert (plan["student_nfe"], plan["loss"], plan["samples"]["training"]) == (6, "gas", 5000)
    whole = activations()
    assert activations("--set", "training.accumulation=4") == pytest.approx(whole / 4, rel=1e-3)
    assert activations("--recompute") == pytest.approx(whole / 4, rel=1e-3)
    assert list(tmp_path.iterdir()) == []


def activations(*options):
    """Bytes that the plan of a four-step solver counts."""
    outcome = run("train", "--config", "ffhq", "--steps", "4", "--dry-run", "--json", *options)
    return json.loads(outcome.stdout)["memory"]["activations"]


def test_wrong_usage_is_two():
    assert run("train").exit_code == 2
    assert run("train", "--config", "demo", "--loss", "gan").exit_code == 2
    assert run("train", "--config", "demo", "--steps", "0").exit_code == 2


def test_help_shows_examples():
    outcome = run("train", "--help")
    assert outcome.exit_code == 0
    assert "torchrun --nproc-per-node 8" in " ".join(outcome.stdout.split())


def test_sigterm_saves_first_and_the_run_goes_on():
    process = program(*TINY, "--iterations", "500", "-o", "runs/demo")
    for line in process.stderr:
        if "Learning a solver" in line:
            break
    while not any(line["kind"] == "train" for line in read_log("runs/demo")):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, rest = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Stopped by SIGTERM after " in rest.splitlines()[-1]
    made = read_log("runs/demo")[-1]["iteration"]
    assert f"after {made} of 500 iterations" in rest
    outcome = run(*TINY, "--iterations", "500", "-o", "runs/demo", "--set", "training.validate_every=7")
    assert "training.validate_every 100, not 7" in outcome.stderr


def test_torchrun():
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "gas_ext")
    process = program(*TINY, "--iterations", "2", "-o", "runs/two", launcher=launcher)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert output.count("wrote runs/two/solver.safetensors") == 1
    outcome = run(*TINY, "--iterations", "2", "-o", "runs/one")
    assert outcome.exit_code == 0, outcome.output
    solvers = [GeneralizedSolver.load(f"runs/{name}/last.safetensors") for name in ("one", "two")]
    for a, b in zip(*(solver.parameters() for solver in solvers), strict=True):
        assert (a - b).abs().max() < 1e-4  # a network in float32 rounds otherwise in another batch
