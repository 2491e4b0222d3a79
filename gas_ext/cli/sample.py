"""`gas-ext sample`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gas_ext.cli.errors import echo, friendly
from gas_ext.cli.options import Device, Labels, Prompts, check_device, read_labels, read_prompts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from gas_ext.denoisers import Denoiser
    from gas_ext.solvers.generalized import GeneralizedSolver

_MOST_SAMPLES = 100_000  # they are in memory at once

EPILOG = (
    "Examples:  gas-ext sample --out grid.png  |  "
    "gas-ext sample --solver gas-demo/solver.safetensors --seeds 0-63 --out grid.png  |  "
    "gas-ext sample --solver coco-6.safetensors --teacher teachers/coco --prompts captions.txt --seeds 0-7 "
    "--out images.safetensors"
)


@friendly
def sample(
    solver: Annotated[str, typer.Option(help="A solver file, or 'demo' for the one that ships.")] = "demo",
    teacher: Annotated[
        str, typer.Option(help="The folder of the teacher it was learned for, or 'demo'.")
    ] = "demo",
    seeds: Annotated[str, typer.Option(help="Seeds such as 0-63,100; one sample each.")] = "0-63",
    labels: Labels = None,
    prompts: Prompts = None,
    out: Annotated[
        Path, typer.Option(help="A .png grid of images, or .safetensors with every number.")
    ] = Path("grid.png"),
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per network call.")] = 32,
    device: Device = "cpu",
    columns: Annotated[int, typer.Option(min=0, help="Images per row; 0 for a square.")] = 0,
) -> None:
    """Draw samples with a saved solver and write them as one PNG grid, or as tensors."""
    from gas_ext._utils.files import check_output_folder
    from gas_ext._utils.noise import parse_seeds, stacked_noise
    from gas_ext._utils.progress import make_reporter
    from gas_ext.evaluation import draw_samples
    from gas_ext.samples import spread_conditions

    numbers = parse_seeds(seeds)
    if len(numbers) > _MOST_SAMPLES:
        raise ValueError(
            f"{len(numbers):,} samples are more than the {_MOST_SAMPLES:,} that go into one file; "
            "give fewer seeds."
        )
    if out.suffix.lower() not in (".png", ".safetensors") or out.is_dir():
        raise ValueError(f"{out} is no name for a file; choose one ending in .png or .safetensors with --out")
    check_output_folder(out.parent)
    loaded, network = _load(solver, teacher, check_device(device))
    conditions = spread_conditions(
        network,
        numbers,
        None if labels is None else read_labels(labels),
        None if prompts is None else read_prompts(prompts),
    )
    noise = stacked_noise(numbers, network.sample_shape, device=device)
    with make_reporter().task("Sampling", len(numbers)) as advance:
        run = draw_samples(
            loaded,
            network,
            noise,
            network.encode_condition(conditions),
            batch_size=batch_size,
            progress=advance,
        )
    images = _decode(network, run.samples, batch_size)
    if out.suffix.lower() == ".png":
        _write_grid(images, out, columns, network.truncates)
    else:
        _write_tensors(run.samples, images, numbers, out)
    what = "images" if out.suffix.lower() == ".png" else "samples"
    echo(f"wrote {out}: {len(numbers)} {what}, {run.nfe} network evaluations each")


def _load(path: str, folder: str, device: str) -> tuple[GeneralizedSolver, Denoiser]:
    """Load a solver file and its teacher, and check that they belong together."""
    from gas_ext.solvers.generalized import GeneralizedSolver
    from gas_ext.teachers.demo import WEIGHTS
    from gas_ext.teachers.folder import load_teacher

    solver = GeneralizedSolver.load(WEIGHTS / "solver.safetensors" if path == "demo" else path)
    teacher = load_teacher(folder, device)
    name, weights_hash = solver.teacher.get("name"), solver.teacher.get("weights_hash")
    if name != teacher.name:
        raise ValueError(
            f"{path} was learned for teacher {name!r}, not for {teacher.name!r} ({folder}): give its own "
            "teacher with --teacher, or a solver of this one with --solver"
        )
    if weights_hash != teacher.weights_hash:
        raise ValueError(
            f"{path} was learned for other weights of {name!r} (hash {str(weights_hash)[:12]}, those in "
            f"{folder} {teacher.weights_hash[:12]}): learn a solver for these"
        )
    return solver.to(device), teacher


def _decode(teacher: Denoiser, samples: Tensor, batch_size: int) -> Tensor:
    """Return images, or whatever the teacher makes, on the CPU."""
    import torch

    with torch.no_grad():
        starts = range(0, len(samples), batch_size)
        return torch.cat([teacher.decode(samples[start : start + batch_size]).cpu() for start in starts])


def _write_grid(images: Tensor, out: Path, columns: int, truncate: bool) -> None:
    from gas_ext._utils.noise import image_grid, save_png

    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"samples of shape {tuple(images.shape[1:])} are no images: choose a file ending in .safetensors "
            "with --out"
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
