"""`gas-ext demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gas_ext.cli.errors import echo, friendly
from gas_ext.cli.options import Device, check_device, reporter_on

if TYPE_CHECKING:
    from gas_ext.cli.demo_run import DemoResult

EPILOG = "Examples:  gas-ext demo  |  gas-ext demo --steps 6 --seed 1 --out demo-6"


@friendly
def demo(
    steps: Annotated[int, typer.Option(min=1, max=20, help="Network evaluations per sample.")] = 4,
    iterations: Annotated[int, typer.Option(min=1, help="Training iterations.")] = 300,
    seed: Annotated[int, typer.Option(min=0, max=49, help="Chooses training and held-out seeds.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for pictures, solver and numbers.")] = Path("gas-demo"),
    device: Device = "auto",
    train_samples: Annotated[int, typer.Option(min=1, help="Teacher samples to learn from.")] = 256,
    held_out_samples: Annotated[int, typer.Option(min=2, help="Held-out seeds to judge on.")] = 1000,
) -> None:
    """Learn a few-step solver for the embedded teacher and compare it with the classical ones.

    Needs no network and no data set, and about three minutes on two cores. When all is done, samples.png,
    times.png, solver.safetensors and results.json are in the output folder.
    """
    from gas_ext._utils.files import check_output_folder
    from gas_ext.cli.demo_run import DemoConfig, run_demo, write_demo

    folder = check_output_folder(out)
    config = DemoConfig(
        steps=steps,
        iterations=iterations,
        seed=seed,
        device=check_device(device),
        train_samples=train_samples,
        held_out_samples=held_out_samples,
    )
    result = run_demo(config, reporter_on(config.device))
    paths = write_demo(result, folder)
    _print_table(result)
    for path in paths:
        echo(f"wrote {out / path.name}")


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
    echo(
        f"{len(result.samples[0])} samples cannot resolve Frechet distances below about those of the "
        "teacher's own row."
    )
    _, classical, learned = result.rows
    if classical.l1_to_teacher > 0:
        ratio = learned.l1_to_teacher / classical.l1_to_teacher
        echo(
            f"L1 to the teacher at {learned.nfe} evaluations: learned / best classical = {ratio:.2f}   "
            f"({sum(result.seconds.values()):.0f} s in all)"
        )
