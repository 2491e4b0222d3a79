import json
import signal
import subprocess
import sys

import pytest
from commands import error_of, run, succeed

TINY = ["--steps", "2", "--iterations", "2", "--train-samples", "8", "--held-out-samples", "20"]


def without_times(record):
    rows = [{k: v for k, v in row.items() if k != "ms_per_image"} for row in record["rows"]]
    return {**record, "seconds": None, "rows": rows}


@pytest.mark.slow
def test_same_seed_same_numbers_and_the_promised_keys(tmp_path):
    records = []
    for name in ("a", "b"):
        text = succeed("demo", *TINY, "--seed", "1", "--out", tmp_path / name)
        assert "learned / best classical" in text
        assert "chosen by L1" in text
        assert "20 samples cannot resolve Frechet distances below" in text
        records.append(json.loads((tmp_path / name / "results.json").read_text()))
    assert without_times(records[0]) == without_times(records[1])
    assert {row["solver"] for row in records[0]["rows"]} == {"teacher", "classical", "learned"}
    for row in records[0]["rows"]:
        assert list(row) == [
            "solver",
            "description",
            "nfe",
            "l1_to_teacher",
            "frechet_to_teacher",
            "frechet_to_data",
            "ms_per_image",
        ]
    solver = tmp_path / "a" / "solver.safetensors"
    assert solver.read_bytes() == (tmp_path / "b" / "solver.safetensors").read_bytes()


def test_errors_are_one_sentence_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    assert f"{tmp_path / 'file'} is a file" in error_of("demo", *TINY, "--out", tmp_path / "file")
    assert "--device cpu" in error_of("demo", *TINY, "--out", tmp_path / "x", "--device", "gpu")
    error = error_of("demo", "--train-samples", "50300", "--out", tmp_path / "x")
    assert "train_samples is 50300" in error


@pytest.mark.parametrize(
    "arguments", [("--steps", "0"), ("--stepps", "4"), ("--seed", "50"), ("--held-out-samples", "19")]
)
def test_wrong_usage(arguments):
    assert run("demo", *arguments).exit_code == 2


@pytest.mark.process
def test_interrupt_ends_with_one_line_and_no_files(tmp_path):
    command = [sys.executable, "-m", "gas_ext", "demo", "--out", str(tmp_path / "gas-demo")]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # A shell's background jobs, and so perhaps this test, ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for line in process.stderr:
        if "teacher samples" in line:
            break
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=300)
    assert process.returncode == 130
    assert rest.strip() == "Interrupted. Nothing was written."
    assert list(tmp_path.iterdir()) == []
