import json
import subprocess
import sys
import warnings

import pytest
import typer
from typer.testing import CliRunner

import gas_ext
from gas_ext.cli import app
from gas_ext.cli.errors import friendly


def run(*arguments):
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize("command", ["demo", "import", "teach", "train", "sample", "info"])
def test_help_shows_examples(command):
    outcome = run(command, "--help")
    assert outcome.exit_code == 0
    assert f"gas-ext {command}" in outcome.stdout
    assert "Examples" in outcome.stdout


def test_no_command_shows_help():
    outcome = run()
    assert outcome.exit_code == 2
    assert "demo" in outcome.output


def test_help_does_not_import_torch():
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom gas_ext.cli import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\nsys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_module_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "gas_ext", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == gas_ext.__version__


def test_info_as_json():
    outcome = run("info", "--json")
    assert outcome.exit_code == 0
    record = json.loads(outcome.stdout)
    assert record["gas_ext"] == gas_ext.__version__
    assert record["cpu_operators"].startswith(("loaded", "not loaded: "))
    assert record["cuda_operators"].startswith(("loaded", "not loaded: "))


def test_info_as_text_names_the_same_facts():
    record = json.loads(run("info", "--json").stdout)
    lines = dict(line.split(maxsplit=1) for line in run("info").stdout.splitlines() if " " in line.strip())
    for name in ("torch", "cpu_operators", "cuda_operators"):
        assert lines[name] == record[name]


@pytest.mark.parametrize(
    "error", [ValueError("a\n  b"), OSError("a b"), RuntimeError("a b"), ImportError("a b")]
)
def test_errors_become_one_line(capsys, error):
    import typer

    @friendly
    def command():
        raise error

    with pytest.raises(typer.Exit) as caught:
        command()
    assert caught.value.exit_code == 1
    assert capsys.readouterr().err == "error: a b\n"


def test_faults_of_the_program_keep_their_traceback():
    @friendly
    def command():
        raise AssertionError

    with pytest.raises(AssertionError):
        command()


def test_names_from_files_do_not_steer_the_terminal(capfd):
    @friendly
    def command():
        warnings.warn("blue\x1b[34m", stacklevel=1)
        raise ValueError("There is no teacher red\x1b[31m\u202e\x07.")

    with pytest.raises(typer.Exit):
        command()
    error = capfd.readouterr().err
    assert error == "warning: blue\\x1b[34m\nerror: There is no teacher red\\x1b[31m\\u202e\\x07.\n"
