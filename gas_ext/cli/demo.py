"""`gas-ext demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gas_ext.cli.errors import echo, friendly
from gas_ext.cli.options import Device, check_device, examples, reporter_on

EPILOG = examples("gas-ext demo", "gas-ext demo --steps 6 --seed 1 --out demo-6")


@friendly
def demo(
    steps: Annotated[int, typer.Option(min=1, max=20, help="Number of network evaluations (NFE).")] = 4,
    iterations: Annotated[int, typer.Option(min=1, help="Training iterations.")] = 300,
    seed: Annotated[
        int, typer.Option(min=0, max=49, help="Seed of the run; selects training and held-out seeds.")
    ] = 0,
    out: Annotated[Path, typer.Option(help="Output directory.")] = Path("gas-demo"),
    device: Device = "auto",
    train_samples: Annotated[int, typer.Option(min=1, help="Number of teacher samples to learn from.")] = 256,
    held_out_samples: Annotated[
        int, typer.Option(min=20, help="Number of held-out seeds for the evaluation.")
    ] = 1000,
) -> None:
    """Learn a solver for the embedded teacher, and compare it with classical ones.

    Needs no network access and no data set, and takes about three minutes on
    two cores. Writes samples.png, times.png, solver.safetensors and
    results.json when everything is done.
    """
    from gas_ext._utils.files import check_output_folder
    from gas_ext.cli.demo_run import FILES, DemoConfig, run_demo

    check_output_folder(out)
    config = DemoConfig(steps, iterations, seed, check_device(device), train_samples, held_out_samples)
    record = run_demo(config, out, reporter_on(config.device))
    _print_table(record, held_out_samples)
    for name in FILES:
        echo(f"wrote {out / name}")


def _print_table(record: dict[str, Any], samples: int) -> None:
    """Print the rows of a demo run and, below, the gain of the learned solver."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{samples} held-out seeds, Frechet features: {record['feature_extractor']}, "
        "classical solver chosen by L1 on training seeds"
    )
    table.add_column("solver")
    table.add_column("")
    for name in ("NFE", "L1 to teacher", "Frechet to teacher", "Frechet to data", "ms/image"):
        table.add_column(name, justify="right")
    for row in record["rows"]:
        distances = (row[key] for key in ("l1_to_teacher", "frechet_to_teacher", "frechet_to_data"))
        table.add_row(
            row["solver"],
            row["description"],
            str(row["nfe"]),
            *("-" if distance is None else f"{distance:.4f}" for distance in distances),
            f"{row['ms_per_image']:.2f}",
        )
    console = Console()
    console.width = max(console.width, 132) if not console.is_terminal else console.width
    with console.capture() as captured:
        console.print(table)
    echo(captured.get().rstrip("\n"))
    echo(f"{samples} samples cannot resolve Frechet distances below about those of the teacher's own row.")
    classical, learned = (row["l1_to_teacher"] for row in record["rows"][1:])
    if classical and learned is not None:
        echo(
            f"L1 to the teacher at {record['steps']} evaluations: learned / best classical = "
            f"{learned / classical:.2f}   ({sum(record['seconds'].values()):.0f} s in all)"
        )
