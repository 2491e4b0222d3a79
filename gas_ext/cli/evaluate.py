"""`gas-ext evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gas_ext.cli import judging
from gas_ext.cli.errors import echo, friendly
from gas_ext.cli.options import examples

if TYPE_CHECKING:
    from gas_ext.evaluation import Cell, Comparison

EPILOG = examples(
    "gas-ext evaluate --config demo --solver demo --samples 500",
    "gas-ext evaluate --config demo --solver runs/demo/solver.safetensors -o evaluation",
    "gas-ext evaluate --config demo --solver unipc-3 --nfe 6 --json",
)


@dataclass(frozen=True)
class Request(judging.Request):
    """The options of `evaluate`."""

    solver: Annotated[
        str,
        typer.Option(
            "--solver",
            "-s",
            metavar="[LABEL=]NAME",
            help="Solver to evaluate: the file of a learned solver, 'demo' (ships with the package), or a "
            "name such as unipc-3.",
        ),
    ]
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Output directory. Existing results are reused.")
    ] = Path("evaluation")
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the content of results.json instead of text.")
    ] = False


@friendly
@judging.options_of(Request)
def evaluate(request: Request) -> None:
    """Evaluate one solver.

    Measures its distances to the teacher's samples and to real data, its NFE,
    and its wall time. Writes the same report as gas-ext compare; both commands
    can share one output directory.
    """
    import json

    from gas_ext.evaluation.report.write import PAGE

    comparison, reports = judging.judge(request)
    if not reports:
        return
    if request.as_json:
        echo(json.dumps(comparison.to_dict(), indent=2))
        return
    for cell in comparison.judged:
        echo("\n".join(_lines(cell, comparison)))
    echo(f"wrote {request.out / PAGE}, with results.json, .csv and .md, plots and grids")


def _lines(cell: Cell, comparison: Comparison) -> list[str]:
    """Return one measure per line, with its confidence interval."""
    from gas_ext.evaluation.report.wording import heading, milliseconds, reach_text, value_text

    lines = [f"{cell.label}: {cell.nfe} network evaluations, {comparison.samples:,} samples"]
    for measure in comparison.measures:
        estimate = cell.estimate(measure.key)
        text = f"{value_text(measure, estimate)} {reach_text(measure, estimate)}".rstrip()
        lines.append(f"  {heading(measure, comparison):<24} {text}")
    return [*lines, f"  {'ms per image':<24} {milliseconds(cell)}"]
