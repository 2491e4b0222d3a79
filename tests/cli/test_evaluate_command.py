import json

import pytest
from typer.testing import CliRunner

from gas_ext.cli import app

FEW = [
    "--config",
    "demo",
    "--samples",
    20,
    "--set",
    "teacher_solver.steps=5",
    "--threads",
    1,
    "--batch-size",
    20,
]


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluate") / "evaluation"


def test_numbers_of_one_solver(folder):
    outcome = run("evaluate", *FEW, "-s", "demo", "-o", folder)
    assert outcome.exit_code == 0, outcome.output
    assert "demo: 4 network evaluations, 20 samples" in outcome.stdout
    for name in ("L1", "PSNR (dB)", "Frechet to teacher", "Frechet to data", "ms per image"):
        assert f"  {name} " in outcome.stdout
    assert (folder / "index.html").is_file()


def test_json(folder):
    outcome = run("evaluate", *FEW, "-s", "demo", "-o", folder, "--json")
    assert outcome.exit_code == 0, outcome.output
    assert json.loads(outcome.stdout) == json.loads((folder / "results.json").read_text())


def test_unknown_solver(tmp_path):
    outcome = run("evaluate", *FEW, "-s", "nonsense", "--nfe", 4, "-o", tmp_path / "e")
    assert outcome.exit_code == 1
    assert "no solver 'nonsense'" in outcome.stderr
    assert not (tmp_path / "e").exists()
