"""`gas-ext teach`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gas_ext.cli.errors import echo, friendly, resumable
from gas_ext.cli.options import (
    Autocast,
    Device,
    Labels,
    Prompts,
    Teacher,
    examples,
    load_teacher_of,
    load_with_solver,
    local_device,
    read_autocast,
    read_labels,
    read_prompts,
    reporter_on,
)

if TYPE_CHECKING:
    from gas_ext.samples import TeacherSamples

EPILOG = examples(
    "gas-ext teach --config demo --seeds 0-255 -o samples/demo",
    "torchrun --nproc-per-node 8 -m gas_ext teach --config cifar10 --device cuda -o samples/cifar10",
    "gas-ext teach --config coco --prompts captions.txt --student-steps 5 -o samples/coco-5",
    "gas-ext teach --teacher teachers/mine --solver unipc-3 --steps 20 --seeds 0-1399 -o samples/mine",
    "gas-ext teach --verify samples/cifar10",
)


@friendly
def teach(
    config: Annotated[
        str | None,
        typer.Option("--config", "-c", help="Name of a config (cifar10, coco, demo, ...) or a YAML file."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Output directory. If it exists, generation resumes.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Seeds such as 0-1399,5000.", show_default="seeds.teacher")
    ] = None,
    teacher: Teacher = None,
    student_steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="NFE of the student, if the teacher's NFE depends on it (coco).",
            show_default="first entry of student.steps",
        ),
    ] = None,
    solver: Annotated[
        str | None,
        typer.Option(help="Without --config: name of the teacher's solver, such as unipc-3@logsnr."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Without --config: number of network evaluations (NFE).")
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Without --config: guidance scale.", show_default="the teacher's")
    ] = None,
    labels: Labels = None,
    prompts: Prompts = None,
    images: Annotated[
        bool | None,
        typer.Option(
            "--images/--no-images",
            help="Store decoded images in addition to latents.",
            show_default="if the loss of the config needs them",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per network call.")] = 64,
    shard_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Samples per file.", show_default="whole batches, at most 1024 samples or 256 MiB"
        ),
    ] = None,
    autocast: Autocast = None,
    threads: Annotated[
        int, typer.Option(min=1, help="CPU threads per process; the last bits of samples depend on it.")
    ] = 1,
    device: Device = "auto",
    repair: Annotated[
        bool, typer.Option("--repair", help="Verify existing shards and regenerate damaged ones.")
    ] = False,
    verify: Annotated[
        Path | None,
        typer.Option(help="Only verify the checksums of this folder; exits with 1 if it is damaged."),
    ] = None,
) -> None:
    """Generate the teacher samples that solvers are learned from.

    Run the same command again to resume after an interruption; with more seeds,
    the folder grows. Under torchrun, the processes share the work.
    """
    from gas_ext._utils.seeds import parse_seeds
    from gas_ext.samples import generate_samples

    if verify is not None:
        _verify(verify)
        return
    alone = config is None
    if out is None or (alone and (teacher is None or solver is None or not steps or seeds is None)):
        raise typer.BadParameter(
            "give --out with either --config, or all of --teacher, --solver, --steps and --seeds; or give "
            "--verify FOLDER."
        )
    if not alone and (solver, steps, guidance_scale) != (None, None, None):
        raise typer.BadParameter("--solver, --steps and --guidance-scale cannot be used with --config.")
    if alone and student_steps is not None:
        raise typer.BadParameter("--student-steps can only be used with --config.")
    device = local_device(device)
    options: dict[str, Any] = {
        "autocast": read_autocast(autocast),
        "labels": read_labels(labels),
        "prompts": read_prompts(prompts),
        "batch_size": batch_size,
        "shard_size": shard_size,
        "threads": threads,
        "repair": repair,
        "command": shlex.join(["gas-ext", *sys.argv[1:]]),
        "reporter": reporter_on(device),
    }
    with resumable("the last finished shard"):
        if config is not None:
            samples = _generate(config, teacher, seeds, out, student_steps, images, device, options)
        else:
            numbers = parse_seeds(str(seeds))
            denoiser, built = load_with_solver(str(teacher), str(solver), steps, device)
            scale = denoiser.guidance_scale if guidance_scale is None else guidance_scale
            options |= {"guidance_scale": scale, "images": bool(images)}
            samples = generate_samples(denoiser, built, numbers, out, **options)
    if samples.complete:
        echo(f"{out} is complete: {len(samples)} samples, {samples.nfe} network evaluations each")
    else:
        missing = len(samples.missing())
        echo(f"{out}: this process is done; {missing} shards remain for other processes or another run")


def _generate(
    name: str,
    teacher: str | None,
    seeds: str | None,
    out: Path,
    student_steps: int | None,
    images: bool | None,
    device: str,
    options: dict[str, Any],
) -> TeacherSamples:
    """Generate samples with the teacher and the solver of a config."""
    from gas_ext._utils.seeds import parse_seeds
    from gas_ext.configs import load_config
    from gas_ext.training.teacher_samples import compares_images, make_samples

    config = load_config(name)
    if images and not config.space.latent:
        raise ValueError(f"The samples of {config.name} are images already; omit --images.")
    numbers = parse_seeds(config.seeds.teacher if seeds is None else seeds)
    return make_samples(
        config,
        load_teacher_of(config, teacher, device),
        numbers,
        out,
        student_steps=student_steps or config.student.steps[0],
        images=compares_images(config) if images is None else images,
        **options,
    )


def _verify(folder: Path) -> None:
    from gas_ext._utils.progress import make_reporter
    from gas_ext.samples import verify_samples

    damaged = verify_samples(folder, reporter=make_reporter())
    for name, damage in damaged.items():
        echo(f"{folder / name} {damage}", err=True)
    if damaged:
        echo("error: Run the command that generated the samples again, with --repair.", err=True)
        raise typer.Exit(1)
    echo(f"{folder} is complete and intact")
