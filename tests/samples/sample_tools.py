"""Helpers of the tests of samples: cheap teachers, folders as bytes, and killed processes."""

import json
import os
import signal
from multiprocessing import get_context
from pathlib import Path

import torch

from gas_ext import Denoiser, NoiseSchedule
from gas_ext.samples import generate_samples
from gas_ext.solvers import UniPCSolver


def make_denoiser(shape=(2, 3), function=None, **options):
    options = {"schedule": NoiseSchedule.vp_linear(), "prediction_type": "sample", **options}
    return Denoiser.from_callable(
        function or (lambda x, t, condition: torch.tanh(x) * (1.5 - t.to(x.dtype))),
        sample_shape=shape,
        **options,
    )


def tanh_denoiser(**options):
    return make_denoiser(function=lambda x, t, condition: torch.tanh(x), **options)


def make_samples(folder, seeds=range(11), denoiser=None, *, steps=3, **options):
    denoiser = denoiser or make_denoiser()
    solver = UniPCSolver(denoiser.schedule, steps)
    return generate_samples(denoiser, solver, seeds, folder, **{"batch_size": 2, "shard_size": 4, **options})


def shard_bytes(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).glob("*.safetensors"))}


def manifest(folder) -> dict:
    return json.loads((Path(folder) / "manifest.json").read_text())


def listing(folder) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def processes(function, arguments):
    """Run a function in separate processes and return their exit codes."""
    context = get_context("fork")
    running = [context.Process(target=function, args=each) for each in arguments]
    for process in running:
        process.start()
    for process in running:
        process.join()
    return [process.exitcode for process in running]


def make_until_killed(folder, seeds, end):
    """Generate samples up to the evaluation with a number, or until the file with a name is complete."""
    denoiser = tanh_denoiser()

    def die_if(reached):
        if reached:
            os.kill(os.getpid(), signal.SIGKILL)

    def network(x, t, condition):
        die_if(denoiser.evaluations == end)
        return torch.tanh(x)

    def or_die(put):
        def put_or_die(source, target):
            die_if(Path(target).name == end)
            put(source, target)

        return put_or_die

    denoiser.function = network
    os.replace, os.link = or_die(os.replace), or_die(os.link)
    torch.set_num_threads(1)
    make_samples(folder, seeds, denoiser)
