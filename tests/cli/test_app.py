import json
import subprocess
import sys
import warnings

import pytest
import typer
from commands import run, succeed

import gas_ext
from gas_ext.cli.errors import friendly

COMMANDS = ["demo", "import", "teach", "train", "sample", "evaluate", "compare", "info"]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_examples(command):
    text = " ".join(succeed(command, "--help").split())
    assert f"Examples: gas-ext {command}" in text


def test_no_command_shows_help():
    outcome = run()
    assert outcome.exit_code == 2
    assert all(command in outcome.output for command in COMMANDS)


@pytest.mark.process
@pytest.mark.parametrize("arguments", [("--help",), ("teach", "--help")])
def test_help_does_not_import_torch(arguments):
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom gas_ext.cli import app\n"
        f"assert CliRunner().invoke(app, {list(arguments)}).exit_code == 0\nsys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_module_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "gas_ext", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == gas_ext.__version__


def test_info_as_json_and_as_text():
    record = json.loads(succeed("info", "--json"))
    assert record["gas_ext"] == gas_ext.__version__
    lines = dict(line.split(maxsplit=1) for line in succeed("info").splitlines() if " " in line.strip())
    for name in ("torch", "cpu_operators", "cuda_operators"):
        assert lines[name] == record[name]
        assert name == "torch" or record[name].startswith(("loaded", "not loaded: "))


TABLE = """
import sys
from types import SimpleNamespace
from gas_ext.cli.errors import friendly
from gas_ext.evaluation.report import print_table
print_table = friendly(print_table)
try:
    print_table(SimpleNamespace(measures=[], title="", teachers=[], judged=[], nfes=[], groups=0, samples=1))
except Exception as error:
    sys.exit(error.exit_code)
"""


@pytest.mark.process
@pytest.mark.parametrize("arguments", [("-m", "gas_ext", "info"), ("-c", TABLE)], ids=["text", "table"])
def test_a_closed_pipe_ends_a_command_silently(arguments):
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 141  # as if SIGPIPE had ended it


@pytest.mark.parametrize(
    "error", [ValueError("a\n  b"), OSError("a b"), RuntimeError("a b"), ImportError("a b")]
)
def test_errors_become_one_line(capsys, error):
    @friendly
    def command():
        raise error

    with pytest.raises(typer.Exit) as caught:
        command()
    assert caught.value.exit_code == 1
    assert capsys.readouterr().err == "error: a b\n"


def test_bugs_keep_their_traceback():
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
