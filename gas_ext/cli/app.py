"""``gas-ext`` and its commands, one module each.

Everything heavy is imported inside the commands, so that --help is quick.
"""

from __future__ import annotations

from typing import Annotated

import typer

from gas_ext import __version__
from gas_ext.cli import compare, demo, evaluate, import_teacher, info, sample, teach, train

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(show: bool) -> None:
    if show:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Few-step sampling of diffusion and flow models with learned solvers."""


app.command("demo", epilog=demo.EPILOG)(demo.demo)
app.command("import", epilog=import_teacher.EPILOG)(import_teacher.import_teacher)
app.command("teach", epilog=teach.EPILOG)(teach.teach)
app.command("train", epilog=train.EPILOG)(train.train)
app.command("sample", epilog=sample.EPILOG)(sample.sample)
app.command("evaluate", epilog=evaluate.EPILOG)(evaluate.evaluate)
app.command("compare", epilog=compare.EPILOG)(compare.compare)
app.command("info", epilog=info.EPILOG)(info.info)
