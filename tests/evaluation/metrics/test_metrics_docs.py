"""The Python of docs/metrics.md runs."""

import re
from pathlib import Path

import torch

PAGE = Path(__file__).resolve().parents[3] / "docs" / "metrics.md"


def test_the_example_runs(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    generator = torch.Generator().manual_seed(0)
    teacher = torch.rand(60, 1, 32, 32, generator=generator) * 2 - 1
    noise = torch.randn(60, 1, 32, 32, generator=generator)
    names = {
        "teacher_samples": teacher,
        "samples_a": teacher + 0.01 * noise,
        "samples_b": teacher + 0.5 * noise,
    }
    exec(block, names)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("Frechet distance (demo) ")
    assert printed[1].endswith(" False")  # no noise
    assert names["difference"].value > 0
