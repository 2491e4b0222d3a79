"""What the tests of samples share: cheap teachers, and folders as bytes."""

import json
from pathlib import Path

import torch

from gas_ext import Denoiser, NoiseSchedule
from gas_ext.multistep import UniPCSolver
from gas_ext.samples import generate_samples


def make_denoiser(shape=(2, 3), function=None, **options):
    options = {"schedule": NoiseSchedule.vp_linear(), "prediction_type": "sample", **options}
    return Denoiser.from_callable(
        function or (lambda x, t, condition: torch.tanh(x) * (1.5 - t.to(x.dtype))),
        sample_shape=shape,
        **options,
    )


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


def flip_bit(path, place=-5):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
