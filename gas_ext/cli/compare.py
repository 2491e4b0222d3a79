"""`gas-ext compare`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from gas_ext.cli import judging
from gas_ext.cli.errors import echo, friendly
from gas_ext.cli.options import examples
from gas_ext.solvers.registry import names

EPILOG = examples(
    "gas-ext compare --config demo --solver dpm++-2@quadratic --solver unipc-3 --solver demo --nfe 4,6 "
    "--samples 500 -o comparison",
    "gas-ext compare --config cifar10 --solver ipndm-3 --solver 'GS=runs/gs-{nfe}/solver.safetensors' --nfe "
    "4,6,8 --features inception-edm --feature-weights inception-2015-12-05.pt --reference cifar10-32x32.npz "
    "--samples 50000 --batch-size 500 --device cuda -o comparison",
    "torchrun --nproc-per-node 8 -m gas_ext compare --config ffhq --solver unipc-3 --device cuda -o ffhq",
    f"Solvers: {', '.join(names())}; unipc-N is unipc-N-bh2. Add @uniform, @quadratic, @logsnr, @edm, @gits "
    "or @TIMES to replace the default times.",
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
            help="Solver to compare (repeatable): a name from the list below, such as unipc-3, "
            "dpm++-2@quadratic or ipndm-3@1,0.5,0.1,0.001; the file of a learned solver, in which {nfe} "
            "is replaced by the NFE; or 'demo', which ships with the package.",
        ),
    ]
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Output directory. Existing results are reused.")
    ] = Path("comparison")


@friendly
@judging.options_of(Request)
def compare(request: Request) -> None:
    """Compare solvers on held-out seeds, which none of them was learned from.

    Writes index.html (everything on one page), results.json, results.csv,
    results.md, plots and grids. Run the same command again to resume; with more
    solvers or samples, only the missing results are computed. Under torchrun,
    the processes share the work.
    """
    from gas_ext.evaluation.report import print_table
    from gas_ext.evaluation.report.write import PAGE

    comparison, reports = judging.judge(request)
    if reports:
        print_table(comparison)
        for skipped in comparison.left_out:
            echo(f"skipped {skipped.label} at NFE {skipped.nfe}: {skipped.reason}")
        echo(f"wrote {request.out / PAGE}, with results.json, .csv and .md, plots and grids")
