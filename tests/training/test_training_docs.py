"""The Python of docs/training.md runs."""

import re
from pathlib import Path

from gas_ext.training import TrainingConfig

TEXT = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_a_run_of_ten_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = [text for text in BLOCKS if "load_teacher" in text]
    few = '"training.train_samples=4", "training.validation_samples=2"'
    block = block.replace("iterations=100", "iterations=2").replace('"training.train_samples=64"', few)
    names = {}
    exec(compile(block, "training.md", "exec"), names)
    assert len(names["losses"]) == 2
    assert (tmp_path / "solver.safetensors").is_file()


def test_in_memory():
    (block,) = [text for text in BLOCKS if "train_solver(" in text]
    names = {}
    exec(compile(block, "training.md", "exec"), names)
    assert names["summary"].losses[-1] < names["summary"].losses[0]


def test_every_setting_that_is_named_exists():
    from gas_ext.configs.training import Adversarial, Training

    for section, model in (("training", Training), ("adversarial", Adversarial)):
        named = set(re.findall(rf"`{section}\.(\w+)", TEXT)) | set(
            re.findall(rf"--set {section}\.(\w+)", TEXT)
        )
        assert named
        assert named <= set(model.model_fields)
    assert TrainingConfig().max_rejected == 10
