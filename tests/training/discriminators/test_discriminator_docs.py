"""The page's Python runs, and the discriminator that it adds works everywhere."""

import torch
from docs_runner import Page

from gas_ext.training.adversarial import discriminator_loss
from gas_ext.training.discriminators import base, build_discriminator, load_discriminator, save_discriminator

PAGE = Page("docs/discriminators.md")


def test_examples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
    assert len(PAGE.blocks) == 5
    for block in PAGE.blocks:
        PAGE.run_block(block)

    added = build_discriminator("spectrum", (2, 100), hidden=8, num_classes=3)
    real, fake = torch.randn(2, 4, 2, 100, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3])
    assert (discriminator_loss(added, real, fake, labels).r1 > 0).all()
    save_discriminator(added, "spectrum.safetensors")
    assert torch.equal(load_discriminator("spectrum.safetensors")(real, labels), added(real, labels))
