"""The page's Python runs as it stands, and the discriminator that it adds works everywhere."""

import re
from pathlib import Path

import torch

from gas_ext.training.adversarial import discriminator_loss
from gas_ext.training.discriminators import base, build_discriminator, load_discriminator, save_discriminator

PAGE = Path(__file__).resolve().parents[3] / "docs" / "discriminators.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_examples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
    assert len(BLOCKS) == 5
    for block in BLOCKS:
        exec(compile(block, PAGE.name, "exec"), {"__name__": "page"})

    added = build_discriminator("spectrum", (2, 100), hidden=8, num_classes=3)
    real, fake = torch.randn(2, 4, 2, 100, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3])
    assert (discriminator_loss(added, real, fake, labels).r1 > 0).all()
    save_discriminator(added, "spectrum.safetensors")
    assert torch.equal(load_discriminator("spectrum.safetensors")(real, labels), added(real, labels))
