"""`gas-ext train`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gas_ext.cli.errors import friendly
from gas_ext.cli.options import Device, check_device

if TYPE_CHECKING:
    from gas_ext.configs import Config

EPILOG = (
    "Examples:  gas-ext train --config ffhq --steps 6 --dry-run  |  "
    "gas-ext train --config demo --steps 4 -o solver.safetensors  |  "
    "gas-ext train --config own.yaml --teacher teachers/own --samples samples/own -o solver.safetensors"
)


class LossKind(str, Enum):
    """What a solver is learned from."""

    gs = "gs"
    gas = "gas"


@friendly
def train(
    config: Annotated[str, typer.Option(help="A data set (cifar10, ffhq, ..., demo) or a YAML file.")],
    steps: Annotated[
        int | None, typer.Option(min=1, help="Network evaluations of the solver; the config's first.")
    ] = None,
    loss: Annotated[
        LossKind, typer.Option(help="gs: distillation; gas: with the adversarial term (plan only).")
    ] = LossKind.gs,
    out: Annotated[Path, typer.Option("--out", "-o", help="The solver's file.")] = Path("solver.safetensors"),
    teacher: Annotated[
        str | None, typer.Option(help="Imported teacher; teachers/NAME if not given.")
    ] = None,
    samples: Annotated[
        Path | None, typer.Option(help="Its samples (gas-ext teach); samples/NAME if not given.")
    ] = None,
    iterations: Annotated[int | None, typer.Option(min=1, help="In place of the config's.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Order in which samples are drawn.")] = 0,
    device: Device = "cpu",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what is needed and what it costs, and stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print one JSON object.")] = False,
) -> None:
    """Learn a solver from a teacher's samples, by the recipe of a config.

    The samples come from gas-ext teach; --dry-run prints the command.
    """
    import json

    from gas_ext.configs import load_config
    from gas_ext.plan import make_plan

    settings = load_config(config)
    plan = make_plan(settings, loss.value, steps, teacher=teacher, samples=samples)
    if dry_run:
        typer.echo(json.dumps(plan.to_dict(), indent=2) if as_json else "\n".join(plan.lines()))
        return
    if loss is LossKind.gas:
        raise ValueError(
            "training with the adversarial term is not offered yet, only its plan (--dry-run); use --loss gs"
        )
    _learn(settings, plan.student_nfe, out, teacher, samples, iterations, seed, check_device(device))


def _learn(
    settings: Config,
    steps: int,
    out: Path,
    teacher: str | None,
    samples: Path | None,
    iterations: int | None,
    seed: int,
    device: str,
) -> None:
    """Load teacher and samples, learn, and write the solver."""
    from gas_ext.learning import learn_solver
    from gas_ext.plan import samples_folder, teacher_folder
    from gas_ext.progress import make_reporter
    from gas_ext.samples import TeacherSamples
    from gas_ext.teachers.folder import load_teacher

    if out.suffix != ".safetensors" or out.is_dir():
        raise ValueError(f"{out} is no name for a solver; choose one ending in .safetensors with --out")
    reporter = make_reporter()
    folder = samples or samples_folder(settings, steps)
    network = load_teacher(teacher or teacher_folder(settings), device)
    learned = learn_solver(
        settings,
        network,
        TeacherSamples.open(folder),
        steps,
        iterations=iterations,
        seed=seed,
        device=device,
        reporter=reporter,
    )
    learned.solver.save(out, training=learned.summary.to_dict())
    typer.echo(
        f"wrote {out}: {steps} network evaluations, mean L1 to the teacher on held-out seeds "
        f"{learned.distance_after:.4f} (before training, {learned.started_from}: "
        f"{learned.distance_before:.4f})"
    )
