"""The Python of docs/teachers.md runs, with small replacements for the reader's models and files."""

from __future__ import annotations

import shutil
import sys

import pytest
from docs_runner import ROOT, Page
from golden_data import GOLDEN

from gas_ext import GeneralizedSolver
from gas_ext.samples import TeacherSamples

PAGE = Page("docs/teachers.md")


def test_every_block_is_run_here():
    assert len(PAGE.blocks) == 4


def test_a_custom_network():
    names = PAGE.run("1000 * t", network=lambda x, t: x * 0.001 * t)
    assert names["denoiser"].sample_shape == (1, 1000)


def test_diffusers(monkeypatch):
    diffusers = pytest.importorskip("diffusers")
    monkeypatch.syspath_prepend(str(ROOT / "tests/teachers/diffusers"))
    import tiny_pipelines

    def from_pretrained(name):
        assert name == "stable-diffusion-v1-5/stable-diffusion-v1-5"
        return tiny_pipelines.stable_diffusion()

    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", from_pretrained)
    names = PAGE.run("from_pretrained")
    assert names["images"].shape[0] == 2
    assert names["denoiser"].evaluations == 6
    assert "tiny_pipelines" in sys.modules


def test_a_published_student(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(GOLDEN / "checkpoints/steps4_pixel.pt", "student.pt")
    PAGE.run("from_reference_checkpoint")
    assert GeneralizedSolver.load("student.safetensors").steps == 4


def test_samples_of_a_custom_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = {"range(5000)": "range(100)", "24), 1000)": "24), 5)"}
    names = PAGE.run("generate_samples", replacing=few, network=lambda x, t, condition: x)
    assert len(TeacherSamples.open("samples/mine")) == 100
    assert names["noise"].shape == (24, 2, 1000)
