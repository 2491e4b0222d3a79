"""How the tests run commands and read their errors."""

from typer.testing import CliRunner

from gas_ext.cli import app

# A small evaluation or comparison on the embedded teacher.
SMALL_TEACHER = (
    "--config",
    "demo",
    "--set",
    "teacher_solver.steps=5",
    "--threads",
    "1",
    "--batch-size",
    "20",
)


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def succeed(*arguments) -> str:
    """Return what a successful command prints."""
    outcome = run(*arguments)
    assert outcome.exit_code == 0, outcome.output
    return outcome.stdout


def error_of(*arguments) -> str:
    """Return the one line that a failing command prints."""
    outcome = run(*arguments)
    assert outcome.exit_code == 1, outcome.output
    assert len(outcome.stderr.strip().splitlines()) == 1
    return outcome.stderr
