"""A small network in place of Inception, and images for it."""

import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Layers(nn.Module):
    """The interface of Inception's layers: normalized 299x299 images to 2048 features."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("filters", torch.randn(8, 3, 5, 5, generator=generator) / 5)
        self.register_buffer("mix", torch.randn(8 * 25, 2048, generator=generator) / 14)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.tanh(F.conv2d(x, self.filters, stride=4))
        return F.adaptive_avg_pool2d(maps, 5).flatten(1) @ self.mix


class SmallInception(nn.Module):
    """A small network with the interface of inception-2015-12-05.pt."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = Layers()

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        x = F.interpolate(img.float(), size=(299, 299), mode="bilinear", align_corners=False)
        features = self.layers((x - 128) / 128)
        return features if return_features else features[:, :1008].softmax(dim=1)


def save_inception(path: Path) -> Path:
    """Write the network as TorchScript."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated
        torch.jit.script(SmallInception()).save(str(path))
    return path


def smooth_images() -> Tensor:
    """Nine smooth RGB images, a little out of range."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(9, 3, 5, 5, generator=generator) * 0.8
    return F.interpolate(coarse, size=(32, 32), mode="bicubic")
