"""`gas-ext teach`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gas_ext.cli.errors import INTERRUPTED, echo, friendly
from gas_ext.cli.options import (
    Device,
    Labels,
    Prompts,
    load_teacher_of,
    load_with_solver,
    local_device,
    read_autocast,
    read_labels,
    read_prompts,
    reporter_on,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gas_ext.configs import Config

EPILOG = (
    "Examples:  gas-ext teach --config demo --seeds 0-255 -o samples/demo  |  "
    "torchrun --nproc-per-node 8 -m gas_ext teach --config cifar10 --device cuda -o samples/cifar10  |  "
    "gas-ext teach --config coco --prompts captions.txt --student-steps 5 -o samples/coco-5  |  "
    "gas-ext teach --teacher teachers/mine --solver unipc-3 --steps 20 --seeds 0-1399 -o samples/mine  |  "
    "gas-ext teach --verify samples/cifar10"
)


@friendly
def teach(
    config: Annotated[
        str | None,
        typer.Option("--config", "-c", help="A data set (cifar10, coco, demo, ...) or a YAML file."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Output directory. If it exists, generation resumes.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Seeds such as 0-1399,5000; the config's teacher seeds if not given.")
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="Folder of an imported teacher, or 'demo'; teachers/CONFIG if not given."),
    ] = None,
    student_steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Steps of the student, where the teacher's depend on them (coco); the config's first if not "
            "given.",
        ),
    ] = None,
    solver: Annotated[
        str | None,
        typer.Option(help="Without --config: the solver, such as unipc-3@logsnr; --teacher and --seeds too."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Its network evaluations.")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Without --config: scale of guidance; the teacher's if not given.")
    ] = None,
    labels: Labels = None,
    prompts: Prompts = None,
    images: Annotated[
        bool | None,
        typer.Option(
            "--images/--no-images",
            help="Keep decoded images besides latents; if not given, where the config's loss needs them.",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per network call.")] = 64,
    shard_size: Annotated[
        int | None,
        typer.Option(min=1, help="Samples per file; if not given, whole batches, at most 1024 or 256 MiB."),
    ] = None,
    autocast: Annotated[
        str | None, typer.Option(help="Precision of the network: float16 or bfloat16; its own if not given.")
    ] = None,
    threads: Annotated[
        int, typer.Option(min=1, help="CPU threads per process; the last bits depend on it.")
    ] = 1,
    device: Device = "auto",
    repair: Annotated[
        bool, typer.Option("--repair", help="Also compare what is there with its SHA-256 and mend it.")
    ] = False,
    verify: Annotated[
        Path | None, typer.Option(help="Only compare this folder with its checksums; exit code 1 if damaged.")
    ] = None,
) -> None:
    """Make the teacher samples that a solver is learned from, and keep them in a folder.

    Run again after an interruption, it resumes; given more seeds, the folder grows. Under
    torchrun every process makes its share.
    """
    from gas_ext.samples import generate_samples
    from gas_ext.training.teacher_samples import make_samples

    if verify is not None:
        _verify(verify)
        return
    if out is None or (config is None and (teacher is None or solver is None or not steps or seeds is None)):
        raise typer.BadParameter(
            "give --out, and --config or --teacher, --solver, --steps and --seeds; or --verify FOLDER."
        )
    if config is not None and (solver, steps, guidance_scale) != (None, None, None):
        raise typer.BadParameter(
            "--solver, --steps and --guidance-scale are for teachers without --config; leave them out."
        )
    if config is None and student_steps is not None:
        raise typer.BadParameter("--student-steps is for teachers of a --config; leave it out.")
    precision = read_autocast(autocast)
    settings, numbers, keep_images = _read_config(config, seeds, images)
    place = local_device(device)
    options: dict[str, Any] = {
        "labels": None if labels is None else read_labels(labels),
        "prompts": None if prompts is None else read_prompts(prompts),
        "batch_size": batch_size,
        "shard_size": shard_size,
        "images": keep_images,
        "autocast": precision,
        "threads": threads,
        "repair": repair,
        "command": shlex.join(["gas-ext", *sys.argv[1:]]),
        "reporter": reporter_on(place),
    }
    if settings is None:
        denoiser, built = load_with_solver(str(teacher), str(solver), steps, place)
        scale = denoiser.guidance_scale if guidance_scale is None else guidance_scale
    else:
        denoiser = load_teacher_of(settings, teacher, place)
    with _resumable():
        if settings is None:
            samples = generate_samples(denoiser, built, numbers, out, guidance_scale=scale, **options)
        else:
            student = student_steps or settings.student.steps[0]
            samples = make_samples(settings, denoiser, numbers, out, student_steps=student, **options)
    if samples.complete:
        echo(f"{out} is complete: {len(samples)} samples, {samples.nfe} network evaluations each")
    else:
        left = len(samples.missing())
        echo(f"{out}: this process is done, {left} shards are left to others or to another run")


def _read_config(
    name: str | None, seeds: str | None, images: bool | None
) -> tuple[Config | None, Sequence[int], bool]:
    """Return a config if one is named, the seeds, and whether decoded images are kept."""
    from gas_ext._utils.seeds import parse_seeds
    from gas_ext.configs import load_config
    from gas_ext.training.teacher_samples import compares_images

    if name is None:
        return None, parse_seeds(seeds or ""), bool(images)
    config = load_config(name)
    if images and not config.space.latent:
        raise ValueError(f"The samples of {config.name} are images already; leave --images out.")
    numbers = parse_seeds(config.seeds.teacher if seeds is None else seeds)
    return config, numbers, compares_images(config) if images is None else images


@contextmanager
def _resumable() -> Iterator[None]:
    """Say after Ctrl-C how to resume."""
    try:
        yield
    except KeyboardInterrupt:
        echo("Interrupted. Run the same command again to resume after the last finished shard.", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _verify(folder: Path) -> None:
    from gas_ext._utils.progress import make_reporter
    from gas_ext.samples import verify_samples

    damaged = verify_samples(folder, reporter=make_reporter())
    for name, damage in damaged.items():
        echo(f"{folder / name} {damage}", err=True)
    if damaged:
        echo("error: run the command that made the samples again, with --repair", err=True)
        raise typer.Exit(1)
    echo(f"{folder} is complete and intact")
