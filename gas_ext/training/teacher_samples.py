"""The teacher samples of a run: opened, or made first where they are missing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gas_ext._utils.processes import Processes
from gas_ext._utils.progress import Reporter
from gas_ext._utils.seeds import parse_seeds
from gas_ext.configs import Config
from gas_ext.denoisers import Denoiser
from gas_ext.samples import TeacherSamples, generate_samples
from gas_ext.samples.manifest import read_manifest
from gas_ext.samples.reading import SampleSource
from gas_ext.training.settings import AUTOCAST

PIXEL_LOSSES = ("lpips", "perceptual")


def compares_images(config: Config) -> bool:
    """Whether the loss of a config compares decoded images, while the samples are latents."""
    return config.space.latent and config.training.loss in PIXEL_LOSSES


def make_samples(
    config: Config,
    denoiser: Denoiser,
    seeds: Sequence[int],
    folder: str | os.PathLike[str],
    *,
    student_steps: int,
    **options: Any,
) -> TeacherSamples:
    """Make samples with the solver and the guidance that a config describes.

    Parameters
    ----------
    config : Config
        Its teacher_solver.
    denoiser : Denoiser
        The teacher's network.
    seeds, folder, options
        As for `generate_samples`.
    student_steps : int
        Network evaluations of the student, on which the teacher's may depend.
    """
    solver = config.teacher_solver.build(denoiser.schedule, student_steps)
    if isinstance(solver, torch.nn.Module):
        solver = solver.to(denoiser.device)
    scale = config.teacher_solver.guidance_scale
    return generate_samples(denoiser, solver, seeds, folder, guidance_scale=scale, **options)


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
    """Open teacher samples; those that a folder lacks are made first.

    Parameters
    ----------
    config : Config
        Teacher solver, seeds and loss.
    denoiser : Denoiser
        The teacher's network.
    place : SampleSource or path
        The samples, or their folder. It need not exist; one that is not complete, or holds too few, is gone
        on with.
    steps : int
        Network evaluations of the student, on which the teacher's may depend.
    count : int
        Samples that are needed.
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
    # A folder that was left unfinished with fewer samples is completed first, and then grows.
    while processes.any(_lacks_samples(folder, count)):
        _make(config, denoiser, folder, steps, count, prompts, reporter)
        processes.wait()  # for the shares of the others
    samples = TeacherSamples.open(folder)
    samples.check_teacher(denoiser)
    _check_guidance(config, samples, reporter)
    return samples


def _lacks_samples(folder: Path, count: int) -> bool:
    """Whether samples are yet to be made."""
    manifest = read_manifest(folder)
    if manifest is None:
        return True
    if manifest.settings["solver"] is None:  # a converted data set, which is as it is
        return False
    return not manifest.complete or manifest.settings["samples"] < count


def _make(
    config: Config,
    denoiser: Denoiser,
    folder: Path,
    steps: int,
    count: int,
    prompts: Sequence[str] | None,
    reporter: Reporter,
) -> None:
    """Make what ``gas-ext teach`` would make, so that either resumes what the other began."""
    seeds = parse_seeds(config.seeds.teacher)
    if len(seeds) < count:
        raise ValueError(
            f"seeds.teacher has {len(seeds)} seeds, but training and validation need {count} samples; give "
            "more, or ask for fewer samples."
        )
    options: dict[str, Any] = {"images": compares_images(config)}
    manifest = read_manifest(folder)
    if manifest is not None:
        begun = manifest.settings
        count = max(count, begun["samples"])
        options["images"] |= begun["image_shape"] is not None
        options["autocast"] = AUTOCAST.get(begun.get("autocast") or "")
        options |= {name: begun[name] for name in ("batch_size", "threads") if name in begun}
    make_samples(
        config,
        denoiser,
        seeds[:count],
        folder,
        student_steps=steps,
        prompts=prompts,
        reporter=reporter,
        **options,
    )


def _check_guidance(config: Config, samples: TeacherSamples, reporter: Reporter) -> None:
    """Raise ValueError if samples were made with another scale of guidance than the config's."""
    made_with, wanted = samples.settings["guidance_scale"], config.teacher_solver.guidance_scale
    if samples.settings["solver"] is None:
        if wanted is not None:
            reporter.message(
                f"{samples.path} does not say how its samples were made; they are taken for samples with "
                f"guidance scale {wanted}, as the config {config.name} says."
            )
    elif made_with != wanted:
        raise ValueError(
            f"{samples.path} was made with guidance scale {made_with}, but the config {config.name} says "
            f"{wanted}; give another folder with --samples."
        )
