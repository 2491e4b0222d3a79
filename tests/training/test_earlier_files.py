"""Files of an earlier commit: read, and a run that was stopped after 4 of 6 iterations resumed.

tests/data/earlier is what `toy_run.run` made with the settings below and the loss "gas". Do not make it
again: it shows that files on disk keep their meaning.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from toy_run import run, toy_denoiser

from gas_ext import GASSampler, GeneralizedSolver
from gas_ext.configs import load_config
from gas_ext.samples import TeacherSamples
from gas_ext.training import read_log

EARLIER = Path(__file__).parents[1] / "data" / "earlier"
FINISHED = EARLIER / "finished.safetensors"  # the result of the same run, not stopped
SETTINGS = {"iterations": 6, "start": "published", "validate_every": 3}


def test_a_sample_folder_loads():
    samples = TeacherSamples.open(EARLIER / "samples")
    batch = samples.batch(range(18))
    assert batch.samples.shape == (18, 2, 8)
    solver = load_config(EARLIER / "run" / "config.yaml").teacher_solver.build(toy_denoiser().schedule, 3)
    again = GASSampler(solver, toy_denoiser())(batch.noise, batch.condition)
    torch.testing.assert_close(again, batch.samples, rtol=1e-4, atol=1e-5)


def test_a_solver_file_loads():
    solver = GeneralizedSolver.load(FINISHED)
    assert (solver.steps, solver.training_summary["start"]) == (3, "DPM-Solver++(3M), uniform times")
    samples = TeacherSamples.open(EARLIER / "samples").batch(range(12, 18))
    found = GASSampler(solver, toy_denoiser())(samples.noise, samples.condition)
    error = (found - samples.samples).abs().mean().item()
    assert error == pytest.approx(solver.training_summary["validation"]["l1"], rel=1e-4)


def test_a_run_folder_resumes(tmp_path):
    shutil.copytree(EARLIER, tmp_path, dirs_exist_ok=True)
    result = run(tmp_path, "gas", SETTINGS)
    assert result.iteration == 6
    finished, resumed = (
        GeneralizedSolver.load(FINISHED),
        GeneralizedSolver.load(result.folder / "last.safetensors"),
    )
    for value, expected in zip(resumed.parameters(), finished.parameters(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
    log = (EARLIER / "run" / "log.jsonl").read_text().splitlines()
    assert [json.dumps(record) for record in read_log(result.folder)][: len(log)] == log
