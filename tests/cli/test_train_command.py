import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from commands import error_of, run, succeed
from golden_data import GOLDEN

from gas_ext import GeneralizedSolver
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


@pytest.mark.slow
def test_from_nothing_to_a_picture(tmp_path):
    text = succeed(*TINY, "--iterations", "2", "-o", "runs/demo")
    assert text.startswith("wrote runs/demo/solver.safetensors: 2 network evaluations, mean L1")
    assert (tmp_path / "samples/demo/manifest.json").is_file()
    assert (tmp_path / "runs/demo/images/grid-00000002.png").is_file()
    assert GeneralizedSolver.load("runs/demo/solver.safetensors").teacher["name"] == "fashion-mnist-32"
    succeed("sample", "--solver", "runs/demo/last.safetensors", "--seeds", "0-3", "--out", "grid.png")


@pytest.mark.slow
def test_gas_resumes_and_repeats_from_its_own_config(tmp_path):
    options = [*TINY, "--loss", "gas", "--set", "training.shown_images=0"]
    text = succeed(*options, "--iterations", "3", "--seed", "5")
    assert "wrote runs/demo-2-gas/solver.safetensors" in text
    assert succeed(*options, "--iterations", "3", "--seed", "5") == text
    assert len(read_log("runs/demo-2-gas")) == 3 + 2
    config = load_config("runs/demo-2-gas/config.yaml")
    assert (config.training.seed, config.run.loss, config.run.steps) == (5, "gas", 2)
    succeed("train", "--config", "runs/demo-2-gas/config.yaml", "-o", "runs/again")
    first, again = (tmp_path / f"runs/{name}/last.safetensors" for name in ("demo-2-gas", "again"))
    assert first.read_bytes() == again.read_bytes()
    error = error_of(*options, "--iterations", "4", "-o", "runs/again")
    assert "training.seed 5, not 0, training.iterations.gas 3, not 4" in error
    succeed(*options, "--iterations", "1", "--no-resume", "-o", "runs/again")
    assert {line["iteration"] for line in read_log("runs/again")} == {0, 1}


@pytest.mark.slow
def test_the_baselines_of_gs():
    options = [*TINY, "--set", "training.shown_images=0", "--iterations", "2"]
    assert "wrote runs/demo-2-gs-ld3/solver.safetensors" in succeed(*options, "--solver", "ld3")
    solver = GeneralizedSolver.load("runs/demo-2-gs-ld3/last.safetensors")
    assert solver.preset == "ld3"
    assert solver.data_corrections.abs().max() == solver.state_corrections.abs().max() == 0
    assert load_config("runs/demo-2-gs-ld3/config.yaml").student.preset == "ld3"
    s4s = [*options, "--solver", "s4s", "--loss", "gas"]
    assert "student.preset 'ld3', not 's4s'" in error_of(*s4s, "-o", "runs/demo-2-gs-ld3")
    succeed(*s4s)
    start, last = (
        GeneralizedSolver.load(f"runs/demo-2-gas-s4s/{name}.safetensors") for name in ("start", "last")
    )
    assert torch.equal(start.timesteps(), last.timesteps())
    assert not torch.equal(start.data_corrections, last.data_corrections)


def test_every_preset_is_an_option():
    assert [preset.value for preset in PresetOption] == list(PRESETS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "training.batch_size=0"], "training.batch_size is 0: input should be greater"),
        (["--set", "training.batchsize=8"], "training.batchsize is not a known setting; remove it."),
        (["--set", "student.t_eps=x"], "student.t_eps is 'x': input should be a valid number."),
        (["--set", "training"], "Cannot set 'training'; write section.name=value"),
        (["--autocast", "float8"], "training.autocast is 'float8': input should be 'bfloat16' or 'float16'."),
        (["--set", "training.start=best"], "expected published, classical, fitted, or a solver file"),
        (["-o", "solver.safetensors"], "solver.safetensors is the name of a file; give a folder"),
        (["--device", "tpu"], "--device cpu"),
        (["--samples", DATA_SET], f"gas-ext import {DATA_SET} --config demo -o samples/demo"),
        (["--teacher", "nowhere"], "There is no imported teacher in nowhere; run gas-ext import demo"),
        (["--set", "training.accumulation=3"], "training.accumulation of at most 2."),
    ],
)
def test_errors_are_one_sentence(tmp_path, arguments, message):
    assert message in error_of(*TINY, *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_plan(tmp_path):
    def plan(*options):
        return json.loads(succeed("train", "--config", "ffhq", "--dry-run", "--json", *options))

    def activations(*options):
        return plan("--steps", "4", *options)["memory"]["activations"]

    gas = plan("--loss", "gas", "--steps", "6")
    assert (gas["student_nfe"], gas["loss"], gas["samples"]["training"]) == (6, "gas", 5000)
    quarter = pytest.approx(activations() / 4, rel=1e-3)
    assert activations("--set", "training.accumulation=4") == quarter
    assert activations("--recompute") == quarter
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [(), ("--config", "demo", "--loss", "gan"), ("--config", "demo", "--steps", "0")]
)
def test_wrong_usage(arguments):
    assert run("train", *arguments).exit_code == 2


@pytest.mark.process
def test_sigterm_saves_first_and_the_run_resumes():
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
    other = ("--set", "training.validate_every=7")
    assert "training.validate_every 100, not 7" in error_of(
        *TINY, "--iterations", "500", "-o", "runs/demo", *other
    )


@pytest.mark.process
def test_torchrun():
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "gas_ext")
    process = program(*TINY, "--iterations", "2", "-o", "runs/two", launcher=launcher)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert output.count("wrote runs/two/solver.safetensors") == 1
    succeed(*TINY, "--iterations", "2", "-o", "runs/one")
    solvers = [GeneralizedSolver.load(f"runs/{name}/last.safetensors") for name in ("one", "two")]
    for a, b in zip(*(solver.parameters() for solver in solvers), strict=True):
        assert (a - b).abs().max() < 1e-4  # float32 networks round differently in another batch
