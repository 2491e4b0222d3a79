"""The Python of docs/training.md runs."""

import re

import pytest
from docs_runner import Page

from gas_ext.training import TrainingConfig

PAGE = Page("docs/training.md")


@pytest.mark.slow
def test_a_run_of_ten_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = {
        "iterations=100": "iterations=2",
        '"training.train_samples=64"': '"training.train_samples=4", "training.validation_samples=2"',
    }
    names = PAGE.run("load_teacher", replacing=few)
    assert len(names["losses"]) == 2
    assert (tmp_path / "solver.safetensors").is_file()


def test_in_memory():
    names = PAGE.run("train_solver(")
    assert names["summary"].losses[-1] < names["summary"].losses[0]


def test_every_setting_that_is_named_exists():
    from gas_ext.configs.training import Adversarial, Training

    for section, model in (("training", Training), ("adversarial", Adversarial)):
        named = set(re.findall(rf"`{section}\.(\w+)", PAGE.text)) | set(
            re.findall(rf"--set {section}\.(\w+)", PAGE.text)
        )
        assert named
        assert named <= set(model.model_fields)
    assert TrainingConfig().max_rejected == 10
