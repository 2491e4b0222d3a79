"""A run that takes seconds, what its tests share, and a program that kills it or runs several processes.

python toy_run.py kill FOLDER KILLS SEED           kill it at random moments, then let it finish
python toy_run.py join FOLDER COUNT                run it in COUNT processes
torchrun toy_run.py torchrun FOLDER RANK CALL      run it in those of torchrun; RANK dies at a network call
"""

import json
import math
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from mixture import SCHEDULE, mixture_denoiser

from gas_ext import Denoiser
from gas_ext.configs import Config
from gas_ext.samples import generate_samples
from gas_ext.training import train
from gas_ext.training.learner import Learner

TRAIN, VALIDATION = 12, 6


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def same(a, b):
    """Whether two solvers or networks have the same parameters, bit for bit."""
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def close(a, b, tolerance=1e-6):
    return all(
        torch.allclose(p, q, rtol=0, atol=tolerance)
        for p, q in zip(a.parameters(), b.parameters(), strict=True)
    )


def toy_denoiser(function=mixture_denoiser, **options) -> Denoiser:
    """A teacher with three classes and samples of shape (2, 8)."""
    options = {"condition_kind": "label", "num_classes": 3, **options}
    return Denoiser.from_callable(
        function, schedule=SCHEDULE, prediction_type="sample", sample_shape=(2, 8), name="toy", **options
    )


def toy_config(training=None, adversarial=None, **sections) -> Config:
    """A config for it, with some values replaced."""
    return Config.model_validate(
        {
            "name": "toy",
            "title": "A toy",
            "teacher": {"kind": "custom"},
            "space": {"shape": [2, 8]},
            "conditions": {"kind": "label", "num_classes": 3},
            "teacher_solver": {
                "kind": "unipc",
                "steps": 12,
                "order": 3,
                "timesteps": "logsnr",
                "t_eps": 1e-3,
            },
            "student": {"steps": [3], "t_eps": 1e-3},
            "seeds": {"teacher": "0-99", "evaluation": "100-199"},
            "training": {
                "loss": "l1",
                "batch_size": 4,
                "iterations": 20,
                "train_samples": TRAIN,
                "validation_samples": VALIDATION,
                "validate_every": 5,
                "checkpoint_every": 2,
                "shown_images": 0,
                **(training or {}),
            },
            "adversarial": {
                "discriminator": "convolution",
                "settings": {"width": 4},
                "rate": 1e-3,
                "weight": 0.1,
                "gamma": 0.2,
                **(adversarial or {}),
            },
            **sections,
        }
    )


def make_toy_samples(folder, count=TRAIN + VALIDATION, denoiser=None):
    denoiser = denoiser or toy_denoiser()
    solver = toy_config().teacher_solver.build(denoiser.schedule, 3)
    return generate_samples(denoiser, solver, range(count), folder, rank=0, world_size=1)


def run(folder: Path, loss: str, training=None, name="run", adversarial=None, **options):
    torch.set_num_threads(1)
    return train(
        toy_config(training, adversarial),
        toy_denoiser(),
        folder / name,
        loss=loss,
        samples=folder / "samples",
        **options,
    )


def in_child(work, *arguments) -> int:
    """Call work in a child process, which starts at once as everything is imported; return its id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work(*arguments)
            code = 0
        finally:
            os._exit(code)
    return child


def finished(child: int) -> bool:
    """Wait for a child; True if it was not killed, and must then have succeeded."""
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return False
    assert os.WEXITSTATUS(status) == 0
    return True


def kill(folder: Path, kills: int, seed: int) -> None:
    """Run once undisturbed, and once killed at random moments; print where each attempt was killed."""
    settings = {"iterations": 40, "start": "published"}
    chance, killed_at = random.Random(seed), {}
    for loss in ("gs", "gas"):
        assert finished(in_child(run, folder, loss, settings, f"whole-{loss}"))
        log, killed_at[loss] = folder / f"killed-{loss}" / "log.jsonl", []
        for _ in range(kills):
            wanted = lines(log) + chance.randrange(6)
            child = in_child(run, folder, loss, settings, f"killed-{loss}")
            while lines(log) < wanted:  # a resumed run first cuts off what was not saved
                time.sleep(0.001)
            time.sleep(chance.uniform(0.0, 0.03))
            os.kill(child, signal.SIGKILL)
            assert not finished(child)
            killed_at[loss].append(lines(log))
        assert finished(in_child(run, folder, loss, settings, f"killed-{loss}"))
    print(json.dumps(killed_at))


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def join(folder: Path, count: int) -> None:
    """Run GS, GAS, and GS with one NaN in one process, in processes that share every batch."""
    for name, loss, fault in (("gs", "gs", 0), ("gas", "gas", 0), ("fault", "gs", 40)):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        children = []
        for rank in range(count):
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            children.append(in_child(share, folder, name, loss, fault if rank == count - 1 else 0))
        assert all([finished(child) for child in children])


def share(folder: Path, name: str, loss: str, fault: int) -> None:
    """Run one of several processes, and write its result."""
    torch.set_num_threads(1)
    denoiser = toy_denoiser(at_call(fault, lambda output: output * math.nan))
    learners = []
    step = Learner.step
    Learner.step = lambda self, batch: learners.append(self) or step(self, batch)
    train(toy_config(), denoiser, folder / name, loss=loss, samples=folder / "samples")
    learner = learners[-1]
    values = [parameter.tolist() for parameter in learner.solver.parameters()]
    record = {"rejected": learner.rejected, "losses": learner.losses, "values": values}
    (folder / f"{name}-{os.environ['RANK']}.json").write_text(json.dumps(record))


def torchrun(folder: Path, rank: int, call: int) -> None:
    """Run one of the processes of torchrun; that rank kills itself at that network call."""
    torch.set_num_threads(1)

    def die(output):
        if int(os.environ["RANK"]) == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        return output

    denoiser = toy_denoiser(at_call(call, die))
    train(toy_config(), denoiser, folder / "torchrun", loss="gas", samples=folder / "samples")


def at_call(number: int, change):
    """Return the toy's network with the output of one call changed, counted from 1."""
    calls = 0

    def network(x, t, condition):
        nonlocal calls
        calls += 1
        output = mixture_denoiser(x, t, condition)
        return change(output) if calls == number else output

    return network


if __name__ == "__main__":
    # A run imports this later; here once for all children.
    import torch._dynamo

    command, folder, *numbers = sys.argv[1:]
    {"kill": kill, "join": join, "torchrun": torchrun}[command](Path(folder), *map(int, numbers))
