"""Reading teacher samples: opening a folder, and one batch in random order with its noise."""

from __future__ import annotations

import pytest
import torch
from cases import generator

from gas_ext import Denoiser, NoiseSchedule
from gas_ext.samples import TeacherSamples, generate_samples
from gas_ext.solvers import DPMSolver

COUNT, SHAPE, BATCH = 512, (3, 32, 32), 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Samples of a network that costs nothing, and the same with their noise in one file of torch."""
    path = tmp_path_factory.mktemp("samples")
    schedule = NoiseSchedule.vp_linear()
    denoiser = Denoiser.from_callable(
        lambda x, t, condition: 0.5 * x, schedule=schedule, prediction_type="sample", sample_shape=SHAPE
    )
    samples = generate_samples(denoiser, DPMSolver(schedule, 4), range(COUNT), path / "folder")
    batch = samples.batch(range(COUNT))
    torch.save({"noise": batch.noise, "images": batch.samples}, path / "all.pt")
    return path


def test_open(against, folder):
    """The peer loads a whole data set, as the public code does before it starts."""
    against(
        lambda: TeacherSamples.open(folder / "folder"),
        {"torch.load of all": lambda: torch.load(folder / "all.pt")},
        subject="reading teacher samples",
        what="open",
        size=(COUNT, *SHAPE),
    )


def test_batch(against, folder):
    """The peers have the samples in memory; the second also draws the noise, one generator per sample."""
    samples = TeacherSamples.open(folder / "folder")
    whole = torch.load(folder / "all.pt")
    index = torch.randperm(COUNT, generator=generator())[:BATCH]

    def indexed():
        return whole["noise"][index], whole["images"][index]

    def drawn():
        noise = [torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in index.tolist()]
        return torch.stack(noise), whole["images"][index]

    against(
        lambda: samples.batch(index),
        {"tensors in memory": indexed, "in memory, noise drawn": drawn},
        subject="reading teacher samples",
        what="batch",
        size=(BATCH, *SHAPE),
    )
