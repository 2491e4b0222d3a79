"""`gas-ext evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gas_ext.cli import judging
from gas_ext.cli.errors import echo, friendly
from gas_ext.cli.options import Device, Labels, Prompts

if TYPE_CHECKING:
    from gas_ext.evaluation import Cell, Comparison

EPILOG = (
    "Examples:  gas-ext evaluate --config demo --solver demo --samples 500  |  "
    "gas-ext evaluate --config demo --solver runs/demo/solver.safetensors -o evaluation  |  "
    "gas-ext evaluate --config demo --solver unipc-3 --nfe 6 --json"
)


@friendly
def evaluate(
    config: judging.ConfigName,
    solver: Annotated[
        str,
        typer.Option(
            "--solver",
            "-s",
            metavar="[LABEL=]NAME",
            help="A learned solver's file, 'demo' for the one that ships, or a name such as unipc-3.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The folder; what is in it already is not made again.")
    ] = Path("evaluation"),
    nfe: judging.Nfe = None,
    samples: judging.Samples = None,
    seeds: judging.SeedList = None,
    teacher: judging.Teacher = None,
    labels: Labels = None,
    prompts: Prompts = None,
    features: judging.Features = None,
    feature_weights: judging.FeatureWeights = None,
    reference: judging.ReferenceFile = None,
    perceptual: judging.Perceptual = False,
    batch_size: judging.BatchSize = 50,
    autocast: judging.Autocast = None,
    threads: judging.Threads = None,
    allow_training_seeds: judging.AllowTrainingSeeds = False,
    override: judging.Override = None,
    device: Device = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what results.json holds in place of the text.")
    ] = False,
) -> None:
    """Judge one solver: distances to the teacher's samples and to real data, evaluations, time.

    The folder gets the same report as that of gas-ext compare, and both may use one folder.
    """
    import json

    from gas_ext.evaluation.report.write import PAGE

    comparison, tells = judging.judge(
        judging.Request(
            config=config,
            solvers=[solver],
            out=out,
            nfe=nfe,
            samples=samples,
            seeds=seeds,
            teacher=teacher,
            labels=labels,
            prompts=prompts,
            features=features or (),
            feature_weights=feature_weights,
            reference=reference,
            perceptual=perceptual,
            batch_size=batch_size,
            autocast=autocast,
            threads=threads,
            allow_training_seeds=allow_training_seeds,
            override=override or (),
            device=device,
        )
    )
    if not tells:
        return
    if as_json:
        echo(json.dumps(comparison.to_dict(), indent=2))
        return
    for cell in comparison.judged:
        echo("\n".join(_lines(cell, comparison)))
    echo(f"wrote {out / PAGE}, and beside it results.json, .csv and .md, plots and grids")


def _lines(cell: Cell, comparison: Comparison) -> list[str]:
    """Return one number per line, with its interval."""
    from gas_ext.evaluation.report.wording import heading, milliseconds, reach_text, value_text

    lines = [f"{cell.label}: {cell.nfe} network evaluations, {comparison.samples:,} samples"]
    for measure in comparison.measures:
        estimate = cell.estimate(measure.key)
        text = f"{value_text(measure, estimate)} {reach_text(measure, estimate)}".rstrip()
        lines.append(f"  {heading(measure, comparison):<24} {text}")
    return [*lines, f"  {'ms per image':<24} {milliseconds(cell)}"]
