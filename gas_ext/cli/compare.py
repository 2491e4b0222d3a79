"""`gas-ext compare`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from gas_ext.cli import judging
from gas_ext.cli.errors import echo, friendly
from gas_ext.solvers.registry import names

EPILOG = (
    "Examples:  gas-ext compare --config demo --solver dpm++-2@quadratic --solver unipc-3 --solver demo "
    "--nfe 4,6 --samples 500 -o comparison  |  "
    "gas-ext compare --config cifar10 --solver ipndm-3 --solver 'GS=runs/gs-{nfe}/solver.safetensors' --nfe "
    "4,6,8 --features inception-edm --feature-weights inception-2015-12-05.pt --reference cifar10-32x32.npz "
    "--samples 50000 --batch-size 500 --device cuda -o comparison  |  "
    "torchrun --nproc-per-node 8 -m gas_ext compare --config ffhq --solver unipc-3 --device cuda -o ffhq"
    f"  |  Solvers:  {', '.join(names())}, unipc-N for unipc-N-bh2; with @uniform, @quadratic, @logsnr, "
    "@edm, @gits or @TIMES for other times than the usual."
)


@dataclass(frozen=True)
class Request(judging.Request):
    """The options of `compare`."""

    solver: Annotated[
        list[str],
        typer.Option(
            "--solver",
            "-s",
            metavar="[LABEL=]NAME",
            help="A name such as unipc-3, dpm++-2@quadratic or ipndm-3@1,0.5,0.1,0.001, or a learned "
            "solver's file, where {nfe} is replaced by the number of evaluations, or 'demo' for the one that "
            "ships; repeatable. All names are below.",
        ),
    ]
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Output directory. Existing results are reused.")
    ] = Path("comparison")


@friendly
@judging.options_of(Request)
def compare(request: Request) -> None:
    """Judge many solvers side by side, on seeds that none was learned from.

    In the folder: index.html (everything on one page), results.json, .csv and .md, plots and grids.
    After an interruption, the same command resumes; with another solver or more samples, it computes what is
    missing.
    Under torchrun every process makes its share.
    """
    from gas_ext.evaluation.report import print_table
    from gas_ext.evaluation.report.write import PAGE

    comparison, reports = judging.judge(request)
    if reports:
        print_table(comparison)
        for it in comparison.left_out:
            echo(f"left out: {it.label} with {it.nfe} evaluations: {it.reason}")
        echo(f"wrote {request.out / PAGE}, with results.json, .csv and .md, plots and grids")
