"""`gas-ext sample`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gas_ext.cli.errors import friendly
from gas_ext.cli.options import Device, check_device

if TYPE_CHECKING:
    from gas_ext.solver import GeneralizedSolver
    from gas_ext.teachers.demo import DemoTeacher

EPILOG = (
    "Examples:  gas-ext sample --out grid.png  |  "
    "gas-ext sample --solver gas-demo/solver.safetensors --seeds 0-63 --out grid.png"
)


@friendly
def sample(
    solver: Annotated[str, typer.Option(help="A solver file, or 'demo' for the one that ships.")] = "demo",
    seeds: Annotated[str, typer.Option(help="Seeds such as 0-63,100; one image each.")] = "0-63",
    out: Annotated[Path, typer.Option(help="The PNG file.")] = Path("grid.png"),
    device: Device = "cpu",
    columns: Annotated[int, typer.Option(min=0, help="Images per row; 0 for a square.")] = 0,
) -> None:
    """Draw samples of the embedded teacher with a saved solver and write them as one PNG grid.

    The label of each image is its seed modulo 10.
    """
    from gas_ext.data import image_grid, parse_seeds, save_png, seed_labels, stacked_noise
    from gas_ext.demo import check_output_folder
    from gas_ext.evaluation import draw_samples
    from gas_ext.progress import make_reporter

    numbers = parse_seeds(seeds)
    if out.suffix.lower() != ".png" or out.is_dir():
        raise ValueError(f"{out} is no name for a PNG file; choose one ending in .png with --out")
    check_output_folder(out.parent)
    loaded, teacher = _load_solver(solver, check_device(device))
    noise = stacked_noise(numbers, teacher.sample_shape, device=device)
    labels = seed_labels(numbers, teacher.num_classes, device)
    with make_reporter().task("Sampling", len(numbers)) as advance:
        run = draw_samples(
            loaded, teacher, noise, labels, prediction_type=teacher.prediction_type, progress=advance
        )
    columns = columns or max(1, round(len(numbers) ** 0.5))
    save_png(image_grid(run.samples.cpu(), columns), out, scale=2)
    typer.echo(f"wrote {out}: {len(numbers)} images, {run.nfe} network evaluations each")


def _load_solver(path: str, device: str) -> tuple[GeneralizedSolver, DemoTeacher]:
    """Load a solver file and the embedded teacher, and check that they belong together."""
    from gas_ext.solver import GeneralizedSolver
    from gas_ext.teachers.demo import WEIGHTS, load_demo_teacher

    teacher = load_demo_teacher(device)
    if path == "demo":
        path = str(WEIGHTS / "solver.safetensors")
    solver = GeneralizedSolver.load(path)
    name, weights_hash = solver.teacher.get("name"), solver.teacher.get("weights_hash")
    if name != teacher.name:
        raise ValueError(
            f"{path} was learned for teacher {name!r}, not for the embedded {teacher.name!r}: load it in "
            "Python with its own network"
        )
    if weights_hash != teacher.weights_hash:
        raise ValueError(
            f"{path} was learned for other weights of {name!r} (hash {str(weights_hash)[:12]}, embedded "
            f"{teacher.weights_hash[:12]}): run gas-ext demo again"
        )
    return solver.to(device), teacher
