"""The teacher samples of a run: opened, and generated first if they are missing."""

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
    """Whether the loss compares decoded images while the samples are latents."""
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
    """Generate samples with a config's teacher solver, which may depend on the student's steps, and guidance.

    `seeds`, `folder` and `options` are those of `generate_samples`.
    """
    solver = config.teacher_solver.build(denoiser.schedule, student_steps)
    if isinstance(solver, torch.nn.Module):
        solver = solver.to(denoiser.device)
    scale = config.teacher_solver.guidance_scale
    return generate_samples(denoiser, solver, seeds, folder, guidance_scale=scale, **options)


def open_samples(
    config: Config,
    denoiser: Denoiser,
    source: SampleSource | str | os.PathLike[str],
    *,
    steps: int,
    count: int,
    prompts: Sequence[str] | None = None,
    processes: Processes,
    reporter: Reporter,
) -> SampleSource:
    """Open at least `count` teacher samples for a student of `steps`; a folder's missing ones are generated.

    ValueError if the samples are another teacher's, or were made with another guidance scale.
    """
    if not isinstance(source, str | os.PathLike):
        return source
    folder = Path(source)
    # A folder that was left unfinished with fewer samples is completed first, and then extended.
    while processes.any(_lacks_samples(folder, count)):
        _generate(config, denoiser, folder, steps, count, prompts, reporter)
        processes.wait()  # for the parts of the others
    samples = TeacherSamples.open(folder)
    samples.check_teacher(denoiser)
    _check_guidance(config, samples, reporter)
    return samples


def _lacks_samples(folder: Path, count: int) -> bool:
    manifest = read_manifest(folder)
    if manifest is None:
        return True
    if manifest.settings["solver"] is None:  # a converted data set, which cannot be extended
        return False
    return not manifest.complete or manifest.settings["samples"] < count


def _generate(
    config: Config,
    denoiser: Denoiser,
    folder: Path,
    steps: int,
    count: int,
    prompts: Sequence[str] | None,
    reporter: Reporter,
) -> None:
    """Generate the samples of ``gas-ext teach``, so that either command resumes the other."""
    seeds = parse_seeds(config.seeds.teacher)
    if len(seeds) < count:
        raise ValueError(
            f"seeds.teacher has {len(seeds)} seeds, but training and validation need {count} samples; add "
            "seeds, or use fewer samples."
        )
    options: dict[str, Any] = {"images": compares_images(config)}
    manifest = read_manifest(folder)
    if manifest is not None:
        begun = manifest.settings
        count = max(count, begun["samples"])
        options["images"] |= begun["image_shape"] is not None
        options["autocast"] = AUTOCAST.get(begun.get("autocast") or "")
        options |= {name: begun[name] for name in ("batch_size", "threads") if name in begun}
    options |= {"prompts": prompts, "reporter": reporter}
    make_samples(config, denoiser, seeds[:count], folder, student_steps=steps, **options)


def _check_guidance(config: Config, samples: TeacherSamples, reporter: Reporter) -> None:
    """Raise ValueError if samples were made with another guidance scale than the config's."""
    made_with, wanted = samples.settings["guidance_scale"], config.teacher_solver.guidance_scale
    if samples.settings["solver"] is None:
        if wanted is not None:
            reporter.message(
                f"{samples.path} does not record how its samples were made; guidance scale {wanted} is "
                f"assumed, as in the config {config.name}."
            )
    elif made_with != wanted:
        raise ValueError(
            f"{samples.path} was made with guidance scale {made_with}, but the config {config.name} has "
            f"{wanted}; choose another folder with --samples."
        )
