"""Commands of ``gas-ext``. Everything heavy is imported inside the commands, so that --help is quick."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gas_ext.cli.errors import friendly

if TYPE_CHECKING:
    from gas_ext.demo import DemoResult
    from gas_ext.solver import GeneralizedSolver
    from gas_ext.teachers.demo import DemoTeacher

app = typer.Typer(
    help="Learned few-step samplers for diffusion and flow models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda or cuda:N.")]


def _version(show: bool) -> None:
    if show:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(version("gas_ext"))
        except PackageNotFoundError:
            import gas_ext

            typer.echo(gas_ext.__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Learned few-step samplers for diffusion and flow models."""


def _check_device(device: str) -> str:
    """Return the device's name if it can be used here."""
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ValueError(f"unknown device {device!r}: use --device cpu, cuda or cuda:N") from None
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r} is not supported: use --device cpu or cuda")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (torch.device(device).index or 0) >= count:
            raise ValueError(
                f"device {device!r} is not there, torch sees {count} CUDA devices: use --device cpu"
            )
    return device


@app.command(
    epilog="Examples:  gas-ext demo  |  gas-ext demo --steps 6 --seed 1 --out demo-6",
)
@friendly
def demo(
    steps: Annotated[int, typer.Option(min=1, max=20, help="Network evaluations per sample.")] = 4,
    iterations: Annotated[int, typer.Option(min=1, help="Training iterations.")] = 300,
    seed: Annotated[int, typer.Option(min=0, max=49, help="Chooses training and held-out seeds.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for pictures, solver and numbers.")] = Path("gas-demo"),
    device: Device = "cpu",
    train_samples: Annotated[int, typer.Option(min=1, help="Teacher samples to learn from.")] = 256,
    held_out_samples: Annotated[int, typer.Option(min=2, help="Held-out seeds to judge on.")] = 1000,
) -> None:
    """Learn a few-step solver for the embedded teacher and compare it with the classical ones.

    Needs no network and no data set, and about two minutes on two cores. When all is done, samples.png,
    times.png, solver.safetensors and results.json are in the output folder.
    """
    from gas_ext.demo import DemoConfig, check_output_folder, run_demo, write_demo
    from gas_ext.progress import make_reporter

    folder = check_output_folder(out)
    config = DemoConfig(
        steps=steps,
        iterations=iterations,
        seed=seed,
        device=_check_device(device),
        train_samples=train_samples,
        held_out_samples=held_out_samples,
    )
    result = run_demo(config, make_reporter())
    paths = write_demo(result, folder)
    _print_table(result)
    for path in paths:
        typer.echo(f"wrote {out / path.name}")


def _print_table(result: DemoResult) -> None:
    """Print the rows of a demo run and, below, what the learned solver gained."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{len(result.samples[0])} held-out seeds, Frechet features: {result.feature_extractor}, "
        "classical solver chosen by L1 on training seeds"
    )
    table.add_column("solver")
    table.add_column("")
    for name in ("NFE", "L1 to teacher", "Frechet to teacher", "Frechet to data", "ms/image"):
        table.add_column(name, justify="right")
    for row in result.rows:
        table.add_row(
            row.solver,
            row.description,
            str(row.nfe),
            *(
                "-" if distance is None else f"{distance:.4f}"
                for distance in (row.l1_to_teacher, row.frechet_to_teacher, row.frechet_to_data)
            ),
            f"{row.ms_per_image:.2f}",
        )
    console = Console()
    console.width = max(console.width, 132) if not console.is_terminal else console.width
    console.print(table)
    typer.echo(
        f"{len(result.samples[0])} samples cannot resolve Frechet distances below about those of the "
        "teacher's own row."
    )
    _, classical, learned = result.rows
    if classical.l1_to_teacher > 0:
        ratio = learned.l1_to_teacher / classical.l1_to_teacher
        typer.echo(
            f"L1 to the teacher at {learned.nfe} evaluations: learned / best classical = {ratio:.2f}   "
            f"({sum(result.seconds.values()):.0f} s in all)"
        )


@app.command(
    epilog="Examples:  gas-ext sample --out grid.png  |  "
    "gas-ext sample --solver gas-demo/solver.safetensors --seeds 0-63 --out grid.png",
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
    loaded, teacher = _load_solver(solver, _check_device(device))
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


@app.command(epilog="Examples:  gas-ext info  |  gas-ext info --json")
@friendly
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print what is installed, how it was built, and whether the compiled operators are loaded."""
    import json
    import platform

    import gas_ext
    from gas_ext import ops

    record: dict[str, Any] = {
        "gas_ext": gas_ext.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **ops.info(),
    }
    if as_json:
        typer.echo(json.dumps(record, indent=2, default=str))
        return
    for name, value in _flatten(record):
        typer.echo(f"{name:26} {value}")


def _flatten(record: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return dotted names and printable values of a nested dictionary."""
    lines: list[tuple[str, str]] = []
    for name, value in record.items():
        if isinstance(value, dict):
            lines += _flatten(value, f"{prefix}{name}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            lines.append((prefix + name, text))
    return lines
