"""Runs that are killed or stopped at any moment resume, and end with the same bits as undisturbed runs."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from toy_run import close, run

from gas_ext import GeneralizedSolver
from gas_ext._utils.progress import LogReporter, SilentReporter
from gas_ext.training import read_log

pytestmark = pytest.mark.process

PROGRAM = Path(__file__).with_name("toy_run.py")
SOLVERS = ("solver.safetensors", "last.safetensors")


def program(*arguments, prefix=(), check=True):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *prefix, str(PROGRAM), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode == 0) == check, done.stderr
    return done.stdout


def same_solvers(a, b):
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in SOLVERS)


def test_killed_at_ten_random_moments(folder):
    for loss, killed_at in json.loads(program("kill", folder, 10, 7)).items():
        assert len(killed_at) == 10
        assert len(set(killed_at)) > 5
        whole, killed = (folder / f"{name}-{loss}" for name in ("whole", "killed"))
        assert same_solvers(whole, killed)
        assert iterations(whole) == iterations(killed)


def iterations(folder):
    return [(line["kind"], line["iteration"]) for line in read_log(folder)]


class Stopped(BaseException):
    pass


@pytest.mark.parametrize(("loss", "noise_levels"), [("gs", []), ("gas", []), ("gas", [0.2, 1.0])])
def test_stopped_at_every_file_that_is_renamed(folder, loss, noise_levels, monkeypatch):
    adversarial = {"noise_levels": noise_levels}
    run(folder, loss, {"iterations": 6}, "whole", adversarial)
    replace = os.replace
    left, attempts = 0, 0

    def replace_or_stop(source, target):
        nonlocal left
        left -= 1
        if left == 0:
            raise Stopped
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_or_stop)
    while True:
        attempts += 1
        left = attempts
        try:
            run(folder, loss, {"iterations": 6}, "stopped", adversarial)
            break
        except Stopped:
            continue
    assert attempts > 6
    assert same_solvers(folder / "whole", folder / "stopped")
    stopped, whole = (
        {path.name for path in (folder / name).rglob("*") if "tfevents" not in path.name}
        for name in ("stopped", "whole")
    )
    assert stopped == whole


class SignalReporter(SilentReporter):
    """Sends this process a signal after an iteration."""

    def __init__(self, number, iteration):
        self.number, self.left = number, iteration

    def task(self, name, total):
        outer = self

        class Task:
            def __enter__(self):
                return self

            def __exit__(self, *error):
                return False

            def __call__(self, amount=1, note=""):
                outer.left -= amount * (name == "Learning a solver")
                if outer.left == 0:
                    os.kill(os.getpid(), outer.number)

        return Task()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_first(folder, number):
    run(folder, "gas", name="whole")
    handler = signal.getsignal(number)
    result = run(folder, "gas", name="stopped", reporter=SignalReporter(number, 7))
    assert signal.getsignal(number) == handler
    assert (result.signal, result.iteration) == (number, 7)
    assert (folder / "stopped" / "checkpoints" / "iteration-00000007.safetensors").is_file()
    result = run(folder, "gas", name="stopped")
    assert (result.signal, result.iteration) == (None, 20)
    assert same_solvers(folder / "whole", folder / "stopped")


def test_a_damaged_checkpoint_is_skipped(folder):
    run(folder, "gas", name="whole")
    run(folder, "gas", name="stopped", reporter=SignalReporter(signal.SIGTERM, 7))
    newest = folder / "stopped" / "checkpoints" / "iteration-00000007.safetensors"
    content = bytearray(newest.read_bytes())
    content[-3] ^= 1
    newest.write_bytes(content)
    lines = []
    run(folder, "gas", name="stopped", reporter=LogReporter(lines.append))
    message = "its SHA-256; get a fresh copy. Resuming from iteration-00000006.safetensors"
    assert any(message in line for line in lines)
    assert same_solvers(folder / "whole", folder / "stopped")


def test_without_a_valid_checkpoint_nothing_is_changed(folder):
    run(folder, "gs", {"iterations": 4})
    for path in (folder / "run" / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"No checkpoint in .* can be used .*--no-resume"):
        run(folder, "gs", {"iterations": 4})
    run(folder, "gs", {"iterations": 4}, resume=False)


def test_a_lost_start_and_a_lost_best_solver_are_restored(folder):
    run(folder, "gs", name="whole")
    run(folder, "gs", name="stopped", reporter=SignalReporter(signal.SIGTERM, 12))
    for name in ("start.safetensors", "solver.safetensors"):
        (folder / "stopped" / name).unlink()
    run(folder, "gs", name="stopped")
    assert same_solvers(folder / "whole", folder / "stopped")


def close_files(a, b):
    return close(GeneralizedSolver.load(a), GeneralizedSolver.load(b))


@pytest.fixture(scope="module")
def joined(tmp_path_factory, toy_samples):
    """Runs of two processes: GS, GAS, and GS with a fault in one of them."""
    folder = tmp_path_factory.mktemp("joined")
    (folder / "samples").symlink_to(toy_samples)
    program("join", folder, 2)
    return folder


def results(folder, name):
    return [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("loss", ["gs", "gas"])
def test_two_processes_learn_what_one_does(joined, folder, loss):
    run(folder, loss, name="alone")
    for name in SOLVERS:
        assert close_files(joined / loss / name, folder / "alone" / name)
    first, second = results(joined, loss)
    assert first == second
    assert first["rejected"] == 0
    assert iterations(joined / loss) == iterations(folder / "alone")


def test_not_finite_in_one_process_is_skipped_in_all(joined):
    first, second = results(joined, "fault")
    assert first["rejected"] == second["rejected"] == 1
    assert first["values"] == second["values"]
    assert sum(loss != loss for loss in first["losses"]) == 1


def test_a_killed_rank_ends_the_run_which_resumes(folder):
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2")
    program("torchrun", folder, 1, 70, prefix=launcher, check=False)
    assert 5 < read_log(folder / "torchrun")[-1]["iteration"] < 20
    result = run(folder, "gas", name="torchrun")
    assert result.iteration == 20
    run(folder, "gas", name="alone")
    assert close_files(folder / "torchrun" / "last.safetensors", folder / "alone" / "last.safetensors")
