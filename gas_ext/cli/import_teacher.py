"""`gas-ext import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gas_ext.cli.errors import echo, friendly

EPILOG = (
    "Examples:  gas-ext import cifar10 -o teachers/cifar10  |  "
    "gas-ext import edm-ffhq-64x64-uncond-vp.pkl --config ffhq -o teachers/ffhq  |  "
    "gas-ext import ./stable-diffusion-v1-5 --config coco -o teachers/coco  |  "
    "gas-ext import owner/name -o teachers/name"
)


@friendly
def import_teacher(
    source: Annotated[
        str,
        typer.Argument(
            help="A file (.pkl, .ckpt, .safetensors), a diffusers folder, a name on the Hugging Face hub, "
            "or a config (cifar10, ffhq, afhqv2, lsun-bedroom, imagenet, coco)."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The new folder.")],
    config: Annotated[
        str | None, typer.Option(help="The data set a file belongs to: name, last time, guidance scale.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Identity of the teacher in solver files.")] = None,
    t_eps: Annotated[float | None, typer.Option(help="Last time of sampling.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Usual scale of guidance.")] = None,
    ema: Annotated[
        bool | None,
        typer.Option("--ema/--no-ema", help="Averaged or raw weights, where an LDM file has both."),
    ] = None,
    latent_size: Annotated[int, typer.Option(min=1, help="Height and width of LDM and SD latents.")] = 64,
    first_stage: Annotated[
        Path | None, typer.Option(help="File with the first stage, where an LDM file has none.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="CLIP tokenizer for Stable Diffusion in one file: folder or hub name.")
    ] = None,
    variant: Annotated[
        str | None, typer.Option(help="Which weights of a diffusers model, such as fp16.")
    ] = None,
) -> None:
    """Convert published weights into one folder: safetensors files and a card with their hashes.

    Every other command takes the folder as --teacher. Pickles are read without running anything in them.
    """
    from gas_ext.configs import load_config
    from gas_ext.teachers import sources
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
    )
    folder = sources.import_teacher(source, out, options, config=load_config(config) if config else None)
    card = read_card(folder)
    shape = "x".join(map(str, card["sample_shape"]))
    conditions = {"none": "no condition", "label": f"{card['num_classes']} classes"}
    echo(
        f"wrote {folder}: {card['family']} teacher {card['name']!r}, samples {shape}, "
        f"{card['prediction_type']}, {conditions.get(card['condition_kind'], card['condition_kind'] + 's')}, "
        f"{sum(entry['bytes'] for entry in card['files'].values()) / 1e6:.1f} MB"
    )
