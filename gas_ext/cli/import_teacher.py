"""`gas-ext import`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gas_ext.cli.errors import echo, friendly
from gas_ext.cli.options import examples

if TYPE_CHECKING:
    from gas_ext.configs import Config
    from gas_ext.teachers.sources import ImportOptions

EPILOG = examples(
    "gas-ext import cifar10 -o teachers/cifar10",
    "gas-ext import edm-ffhq-64x64-uncond-vp.pkl --config ffhq -o teachers/ffhq",
    "gas-ext import ./stable-diffusion-v1-5 --config coco -o teachers/coco",
    "gas-ext import owner/name -o teachers/name",
    "gas-ext import student.pt --config cifar10 -o student.safetensors",
    "gas-ext import dataset.pkl --config cifar10 -o samples/cifar10",
)


@friendly
def import_teacher(
    source: Annotated[
        str,
        typer.Argument(
            help="Weights to import: a file (.pkl, .ckpt, .safetensors), a diffusers folder, a name on the "
            "Hugging Face hub, or a config (cifar10, ffhq, afhqv2, lsun-bedroom, imagenet, coco). Also a "
            "student (.pt) or a data set (.pkl) published with the GS/GAS paper."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="New directory; for a student, a new .safetensors file.")
    ],
    config: Annotated[
        str | None,
        typer.Option(
            help="Config of the data set that a file belongs to. Sets name, last time, guidance scale and "
            "attention heads."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name that identifies the teacher in solver files.")
    ] = None,
    t_eps: Annotated[float | None, typer.Option(help="Last time of sampling.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Default guidance scale.")] = None,
    ema: Annotated[
        bool | None, typer.Option("--ema/--no-ema", help="Use EMA or raw weights if an LDM file has both.")
    ] = None,
    latent_size: Annotated[
        int, typer.Option(min=1, help="Height and width of the latents of LDM and Stable Diffusion.")
    ] = 64,
    first_stage: Annotated[
        Path | None, typer.Option(help="File with the first stage if an LDM file has none.")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="CLIP tokenizer of a single-file Stable Diffusion: a folder or a name on the hub."),
    ] = None,
    variant: Annotated[
        str | None, typer.Option(help="Variant of the weights of a diffusers model, such as fp16.")
    ] = None,
    heads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Attention heads of a class-conditional LDM or a Stable Diffusion file, which omits them.",
        ),
    ] = None,
    head_channels: Annotated[
        int | None, typer.Option(min=1, help="Channels per attention head of an unconditional LDM file.")
    ] = None,
    text_heads: Annotated[
        int | None, typer.Option(min=1, help="Attention heads of a Stable Diffusion file's text encoder.")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of network evaluations (NFE) of a student.", show_default="the file's"
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Imported teacher that provides the noise schedule of a student.",
            show_default="teachers/CONFIG if it exists",
        ),
    ] = None,
) -> None:
    """Convert published weights into a teacher folder.

    The folder holds safetensors files and a card with their hashes; pass it to
    the other commands as --teacher. A published student becomes a solver file
    (--solver), a published data set a sample folder (--samples). Pickles are
    parsed without executing anything in them.
    """
    from gas_ext.configs import load_config
    from gas_ext.teachers import published, sources
    from gas_ext.teachers.folder import read_card

    options = sources.ImportOptions(
        name=name,
        t_eps=t_eps,
        guidance_scale=guidance_scale,
        use_ema=ema,
        latent_size=latent_size,
        first_stage=first_stage,
        tokenizer=tokenizer,
        variant=variant,
        num_heads=heads,
        num_head_channels=head_channels,
        text_heads=text_heads,
        steps=steps,
        teacher=teacher,
    )
    settings = load_config(config) if config else None
    path = Path(source)
    kind = sources.source_type_of(path) if path.is_file() else ""
    if kind in (published.STUDENT, published.DATA_SET):
        sources.check_options(path, kind, options)
        convert = _import_student if kind == published.STUDENT else _import_samples
        convert(path, out, settings, options)
        return
    folder = sources.import_teacher(source, out, options, config=settings)
    card = read_card(folder)
    shape = "x".join(map(str, card["sample_shape"]))
    conditions = {"none": "no condition", "label": f"{card['num_classes']} classes"}
    echo(
        f"wrote {folder}: {card['family']} teacher {card['name']!r}, samples {shape}, "
        f"{card['prediction_type']}, {conditions.get(card['condition_kind'], card['condition_kind'] + 's')}, "
        f"{sum(entry['bytes'] for entry in card['files'].values()) / 1e6:.1f} MB"
    )


def _import_student(path: Path, out: Path, config: Config | None, options: ImportOptions) -> None:
    from gas_ext.teachers.published import import_student

    if config is None:
        raise ValueError(
            f"{path} is a published student, which has no noise schedule; name its data set with --config."
        )
    solver = import_student(
        path,
        out,
        config,
        steps=options.steps,
        t_eps=options.t_eps,
        guidance_scale=options.guidance_scale,
        teacher=options.teacher,
    )
    echo(f"wrote {out}: a solver of {solver.steps} network evaluations for {config.name}")


def _import_samples(path: Path, out: Path, config: Config | None, _: ImportOptions) -> None:
    from gas_ext._utils.progress import make_reporter
    from gas_ext.samples.published import import_samples
    from gas_ext.training.teacher_samples import compares_images

    images = config is not None and compares_images(config)
    samples = import_samples(path, out, config, images=images, reporter=make_reporter())
    echo(f"wrote {out}: {len(samples)} samples")
