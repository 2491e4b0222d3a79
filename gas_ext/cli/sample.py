"""`gas-ext sample`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gas_ext.cli.errors import echo, friendly
from gas_ext.cli.options import (
    Device,
    Labels,
    Prompts,
    check_device,
    examples,
    load_with_solver,
    read_labels,
    read_prompts,
    reporter_on,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from gas_ext.denoisers import Denoiser
    from gas_ext.solvers.coefficients import Solver

_MOST_SAMPLES = 100_000  # all are in memory at once

EPILOG = examples(
    "gas-ext sample --out grid.png",
    "gas-ext sample --solver gas-demo/solver.safetensors --seeds 0-63 --out grid.png",
    "gas-ext sample --solver coco-6.safetensors --teacher teachers/coco --prompts captions.txt --seeds 0-7 "
    "--out images.safetensors",
    "gas-ext sample --solver unipc-3@logsnr --steps 8",
)


@friendly
def sample(
    solver: Annotated[
        str,
        typer.Option(
            help="Solver file, 'demo' (ships with the package), or a name such as unipc-3 with --steps."
        ),
    ] = "demo",
    teacher: Annotated[
        str, typer.Option(help="Folder of the teacher that the solver was learned for, or 'demo'.")
    ] = "demo",
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            "--nfe",
            min=1,
            help="Number of network evaluations (NFE) of a named solver.",
            show_default="that of the solver file",
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds such as 0-63,100, one per sample.")] = "0-63",
    labels: Labels = None,
    prompts: Prompts = None,
    out: Annotated[
        Path, typer.Option(help="Output file: a .png grid of images, or .safetensors with all samples.")
    ] = Path("grid.png"),
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per network call.")] = 32,
    device: Device = "auto",
    columns: Annotated[int, typer.Option(min=0, help="Images per row; 0 for a square grid.")] = 0,
) -> None:
    """Sample with a saved or named solver, and write a PNG grid or tensors."""
    from gas_ext._utils.files import check_output_folder
    from gas_ext._utils.noise import stacked_noise
    from gas_ext._utils.seeds import parse_seeds
    from gas_ext.evaluation import draw_samples
    from gas_ext.samples import spread_conditions

    numbers, suffix = parse_seeds(seeds), out.suffix.lower()
    if len(numbers) > _MOST_SAMPLES:
        raise ValueError(
            f"{len(numbers):,} samples are more than the {_MOST_SAMPLES:,} of one file; give fewer seeds."
        )
    if suffix not in (".png", ".safetensors") or out.is_dir():
        raise ValueError(f"{out} cannot be written; give a file ending in .png or .safetensors with --out.")
    check_output_folder(out.parent)
    device = check_device(device)
    loaded, network, guidance_scale = _load(solver, steps, teacher, device)
    conditions = spread_conditions(network, numbers, read_labels(labels), read_prompts(prompts))
    noise = stacked_noise(numbers, network.sample_shape, device=device)
    with reporter_on(device).task("Sampling", len(numbers)) as advance:
        run = draw_samples(
            loaded,
            network,
            noise,
            network.encode_condition(conditions),
            guidance_scale=guidance_scale,
            batch_size=batch_size,
            progress=advance,
        )
    images = _decode(network, run.samples, batch_size)
    if suffix == ".png":
        _write_grid(images, out, columns, network.truncates)
    else:
        _write_tensors(run.samples, images, numbers, out)
    what = "images" if suffix == ".png" else "samples"
    echo(f"wrote {out}: {len(numbers)} {what}, {run.nfe} network evaluations each")


def _load(name: str, steps: int | None, folder: str, device: str) -> tuple[Solver, Denoiser, float | None]:
    """Return a solver, its teacher, and the guidance scale; a named solver takes the teacher's."""
    from gas_ext.evaluation.entries import is_file, load_solver
    from gas_ext.teachers.folder import load_teacher

    if not is_file(name):
        teacher, built = load_with_solver(folder, name, steps, device)
        return built, teacher, teacher.guidance_scale
    if name != "demo" and not Path(name).is_file():
        raise FileNotFoundError(f"There is no solver file {name}.")
    teacher = load_teacher(folder, device)
    solver = load_solver(name, teacher).to(device)
    if steps not in (None, solver.steps):
        raise ValueError(f"{name} makes {solver.steps} network evaluations, not {steps}; omit --steps.")
    return solver, teacher, solver.guidance_scale


def _decode(teacher: Denoiser, samples: Tensor, batch_size: int) -> Tensor:
    """Return decoded samples on the CPU."""
    import torch

    with torch.no_grad():
        starts = range(0, len(samples), batch_size)
        return torch.cat([teacher.decode(samples[start : start + batch_size]).cpu() for start in starts])


def _write_grid(images: Tensor, out: Path, columns: int, truncate: bool) -> None:
    from gas_ext._utils.noise import image_grid, save_png

    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"Samples of shape {tuple(images.shape[1:])} are not images; give a file ending in .safetensors "
            "with --out."
        )
    columns = columns or max(1, round(len(images) ** 0.5))
    scale = 2 if images.shape[-1] < 64 else 1
    save_png(image_grid(images, columns), out, scale, truncate=truncate)


def _write_tensors(samples: Tensor, images: Tensor, seeds: Sequence[int], out: Path) -> None:
    import torch
    from safetensors.torch import save

    from gas_ext._utils.files import write_file

    tensors = {"samples": samples.cpu().contiguous(), "seeds": torch.tensor(list(seeds))}
    if images.shape != samples.shape or not torch.equal(images, tensors["samples"]):
        tensors["images"] = images.contiguous()
    write_file(out, save(tensors))
