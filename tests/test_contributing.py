"""The worked examples of CONTRIBUTING.md run, and what it names exists."""

from __future__ import annotations

import re

import torch
from docs_runner import ROOT, Page

from gas_ext import GASSampler

PAGE = Page("CONTRIBUTING.md")


def test_every_example_is_run_here() -> None:
    assert len(PAGE.blocks) == 4


def test_solver_has_its_order() -> None:
    names = PAGE.run("AdamsSolver")
    assert names["sample"].shape == (2, 3, 8, 8)
    schedule = names["schedule"]

    def gaussian(x, t, condition):  # the noise in x_t where the data are standard normal
        return schedule.sigma(t) * x

    def end(steps: int, order: int) -> torch.Tensor:
        solver = names["AdamsSolver"](schedule, steps, order, timesteps="logsnr")
        return GASSampler(solver, gaussian, "epsilon")(torch.ones(1, 1, dtype=torch.float64))

    exact = end(2000, 2)
    for order in (1, 2):
        ratio = ((end(40, order) - exact) / (end(80, order) - exact)).item()
        assert 2**order * 0.85 < ratio < 2**order * 1.25


def test_teacher_makes_samples() -> None:
    names = PAGE.run("MyTeacher")
    assert names["images"].shape == (2, 3, 32, 32)
    assert names["teacher"].evaluations == 4


def test_loss_is_learned_with() -> None:
    losses = PAGE.run("charbonnier_loss")["summary"].losses
    assert losses[-1] < losses[0]


def test_metric_has_an_interval() -> None:
    names = PAGE.run("energy_distance")
    assert 0 < names["low"] < names["estimate"].value < names["high"]


def test_tiers_are_the_markers() -> None:
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    markers = re.findall(r'^  "(\w+): ', settings[settings.index("markers = [") :], re.MULTILINE)
    assert re.findall(r"^\| `pytest -m (\w+)` \|", PAGE.text, re.MULTILINE) == markers


def test_paths_exist() -> None:
    for path in re.findall(r"`((?:gas_ext|tests|docs|benchmarks|csrc)/[\w./]*)`", PAGE.text):
        assert (ROOT / path).exists(), path
