import json
import signal
import subprocess
import sys

from typer.testing import CliRunner

from gas_ext.cli import app

TINY = ["--steps", "2", "--iterations", "2", "--train-samples", "8", "--held-out-samples", "20"]
TIMES = ("seconds",)


def run(*arguments):
    return CliRunner().invoke(app, list(arguments))


def without_times(record):
    kept = {name: value for name, value in record.items() if name not in TIMES}
    kept["rows"] = [{k: v for k, v in row.items() if k != "ms_per_image"} for row in record["rows"]]
    return kept


def test_same_seed_same_numbers_and_the_promised_keys(tmp_path):
    records = []
    for name in ("a", "b"):
        outcome = run("demo", *TINY, "--seed", "1", "--out", str(tmp_path / name))
        assert outcome.exit_code == 0, outcome.output
        assert "learned / best classical" in outcome.stdout
        assert "chosen by L1" in outcome.stdout
        assert "20 samples cannot resolve Frechet distances below" in outcome.stdout
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


def test_output_that_cannot_be_written_is_named_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    outcome = run("demo", *TINY, "--out", str(tmp_path / "file"))
    assert outcome.exit_code == 1
    assert (
        outcome.stderr.strip()
        == f"error: {tmp_path / 'file'} is a file; choose another output folder with --out."
    )


def test_unknown_device_names_the_remedy(tmp_path):
    outcome = run("demo", *TINY, "--out", str(tmp_path / "x"), "--device", "gpu")
    assert outcome.exit_code == 1
    assert "--device cpu" in outcome.stderr
    assert len(outcome.stderr.strip().splitlines()) == 1


def test_wrong_usage_is_two():
    assert run("demo", "--steps", "0").exit_code == 2
    assert run("demo", "--stepps", "4").exit_code == 2
    assert run("demo", "--seed", "50").exit_code == 2
    assert run("demo", "--held-out-samples", "19").exit_code == 2


def test_training_samples_never_reach_the_held_out_seeds(tmp_path):
    outcome = run("demo", "--train-samples", "50300", "--out", str(tmp_path / "x"))
    assert outcome.exit_code == 1
    assert "train_samples is 50300" in outcome.stderr
    assert len(outcome.stderr.strip().splitlines()) == 1


def test_interrupt_ends_with_one_line_and_no_files(tmp_path):
    command = [sys.executable, "-m", "gas_ext", "demo", "--out", str(tmp_path / "gas-demo")]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Of a shell's background jobs, and so perhaps of this test, SIGINT is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for line in process.stderr:
        if "teacher samples" in line:
            break
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=300)
    assert process.returncode == 130
    assert rest.strip() == "interrupted: nothing was written"
    assert list(tmp_path.iterdir()) == []
