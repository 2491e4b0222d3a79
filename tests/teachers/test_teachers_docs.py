"""The Python of docs/teachers.md runs, with small stand-ins for what a reader brings."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
from golden_data import GOLDEN

from gas_ext import GeneralizedSolver
from gas_ext.samples import TeacherSamples

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/teachers.md").read_text("utf-8"), re.DOTALL)


def block(word: str) -> str:
    (found,) = [text for text in BLOCKS if word in text]
    return found


def test_every_block_is_run_here():
    assert len(BLOCKS) == 4


def test_one_s_own_network():
    names = {"network": lambda x, t: x * 0.001 * t}
    exec(compile(block("1000 * t"), "teachers.md", "exec"), names)
    assert names["denoiser"].sample_shape == (1, 1000)


def test_diffusers(monkeypatch):
    diffusers = pytest.importorskip("diffusers")
    monkeypatch.syspath_prepend(str(ROOT / "tests/teachers/diffusers"))
    import tiny_pipelines

    def from_pretrained(name):
        assert name == "stable-diffusion-v1-5/stable-diffusion-v1-5"
        return tiny_pipelines.stable_diffusion()

    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", from_pretrained)
    names = {}
    exec(compile(block("from_pretrained"), "teachers.md", "exec"), names)
    assert names["images"].shape[0] == 2
    assert names["denoiser"].evaluations == 6
    assert "tiny_pipelines" in sys.modules


def test_a_published_student(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(GOLDEN / "checkpoints/steps4_pixel.pt", "student.pt")
    exec(compile(block("from_reference_checkpoint"), "teachers.md", "exec"), {})
    assert GeneralizedSolver.load("student.safetensors").steps == 4


def test_samples_of_one_s_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = block("generate_samples").replace("range(5000)", "range(100)").replace("24), 1000)", "24), 5)")
    names = {"network": lambda x, t, condition: x}
    exec(compile(text, "teachers.md", "exec"), names)
    assert len(TeacherSamples.open("samples/mine")) == 100
    assert names["noise"].shape == (24, 2, 1000)
