"""The Python of docs/metrics.md runs."""

import torch
from docs_runner import Page


def test_the_example_runs(capsys):
    generator = torch.Generator().manual_seed(0)
    teacher = torch.rand(60, 1, 32, 32, generator=generator) * 2 - 1
    noise = torch.randn(60, 1, 32, 32, generator=generator)
    names = Page("docs/metrics.md").run(
        "teacher_samples",
        teacher_samples=teacher,
        samples_a=teacher + 0.01 * noise,
        samples_b=teacher + 0.5 * noise,
    )
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("Frechet distance (demo) ")
    assert printed[1].endswith(" False")  # no noise
    assert names["difference"].value > 0
