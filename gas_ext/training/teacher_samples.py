"""The teacher samples of a run: opened, or made first where they are missing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from gas_ext.configs import Config
from gas_ext.denoisers import Denoiser
from gas_ext.progress import Reporter
from gas_ext.samples import TeacherSamples, generate_samples
from gas_ext.samples.manifest import read_manifest
from gas_ext.samples.reading import SampleSource
from gas_ext.seeds import parse_seeds
from gas_ext.training.processes import Processes

PIXEL_LOSSES = ("lpips", "perceptual")


def compares_images(config: Config) -> bool:
    """Whether the loss of a config compares decoded images, while the samples are latents."""
    return config.space.latent and config.training.loss in PIXEL_LOSSES


def open_samples(
    config: Config,
    denoiser: Denoiser,
    place: SampleSource | str | os.PathLike[str],
    *,
    steps: int,
    count: int,
    prompts: Sequence[str] | None = None,
    processes: Processes,
    reporter: Reporter,
) -> SampleSource:
    """Open teacher samples; those of a folder that does not exist, or is not complete, are made first.

    Parameters
    ----------
    config : Config
        Teacher solver, seeds and loss.
    denoiser : Denoiser
        The teacher's network.
    place : SampleSource or path
        The samples, or their folder.
    steps : int
        Network evaluations of the student, on which the teacher's may depend.
    count : int
        Samples to make.
    prompts : sequence of str, optional
        For a teacher with prompts.
    processes : Processes
        Each makes its share.
    reporter : Reporter
        Told of the progress.

    Raises
    ------
    ValueError
        If the samples are another teacher's, or were made with another scale of guidance.
    """
    if not isinstance(place, str | os.PathLike):
        return place
    folder = Path(place)
    manifest = read_manifest(folder)
    if manifest is None or manifest.shards is None:
        _make(config, denoiser, folder, steps, count, prompts, reporter)
    processes.wait()
    samples = TeacherSamples.open(folder)
    samples.check_teacher(denoiser)
    made_with, wanted = samples.settings["guidance_scale"], config.teacher_solver.guidance_scale
    if made_with != wanted:
        raise ValueError(
            f"{folder} was made with guidance scale {made_with}, but the config {config.name} says {wanted}; "
            "give another folder with --samples."
        )
    return samples


def _make(
    config: Config,
    denoiser: Denoiser,
    folder: Path,
    steps: int,
    count: int,
    prompts: Sequence[str] | None,
    reporter: Reporter,
) -> None:
    """Make what ``gas-ext teach`` would make, so that either goes on with what the other began."""
    seeds = parse_seeds(config.seeds.teacher)
    if len(seeds) < count:
        raise ValueError(
            f"seeds.teacher has {len(seeds)} seeds, but training and validation need {count} samples; give "
            "more, or ask for fewer samples."
        )
    solver = config.teacher_solver.build(denoiser.schedule, steps)
    generate_samples(
        denoiser,
        solver.to(denoiser.device) if isinstance(solver, torch.nn.Module) else solver,
        seeds[:count],
        folder,
        prompts=prompts,
        images=compares_images(config),
        guidance_scale=config.teacher_solver.guidance_scale,
        reporter=reporter,
    )
