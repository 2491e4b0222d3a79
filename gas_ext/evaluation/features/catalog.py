"""Feature extractors by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeAlias

import torch

from gas_ext._utils.files import file_hash
from gas_ext.evaluation.features.extractor import FeatureExtractor
from gas_ext.evaluation.features.inception import load_inception
from gas_ext.training.losses import EfficientNetFeatures

Weights: TypeAlias = str | os.PathLike[str] | None
# Builds an extractor on a device, from a weights file and its SHA-256 if it takes one.
Factory: TypeAlias = Callable[[str | torch.device, Weights, str | None], FeatureExtractor]


def load_features(
    name: str,
    device: str | torch.device = "cpu",
    weights: Weights = None,
    *,
    sha256: str | None = None,
) -> FeatureExtractor:
    """Load a feature extractor by name.

    Parameters
    ----------
    name : str
        "demo": the embedded network, for gray 32x32 images. "efficientnet-lite0": an ImageNet network (extra
        "perceptual"). "inception-clean", "inception-legacy", "inception-edm": see `load_inception`. Or a
        name passed to `register_features`.
    device : device
        Where to put the network; default "cpu".
    weights : path, optional
        A weights file, for the Inception networks.
    sha256 : str, optional
        SHA-256 (hex) of this file if it is not the published one.

    Raises
    ------
    ValueError
        If the name is unknown or the file's hash differs.
    ImportError, FileNotFoundError
        If a package or file is missing; the message says where to get it.

    Examples
    --------
    >>> features = load_features("demo")
    >>> features(torch.zeros(2, 1, 32, 32)).shape
    torch.Size([2, 64])
    """
    if name not in _FACTORIES:
        raise ValueError(f"Unknown features {name!r}; use one of {', '.join(feature_names())}.")
    return _FACTORIES[name](device, weights, sha256)


def register_features(name: str, factory: Factory) -> None:
    """Add a custom extractor for `load_features`; raises ValueError if the name is taken.

    Examples
    --------
    >>> def means(device, weights, sha256):
    ...     return FeatureExtractor("means", 3, lambda images: images.mean(dim=(2, 3)), device=device)
    >>> register_features("means", means)
    >>> load_features("means")(torch.zeros(1, 3, 4, 4)).shape
    torch.Size([1, 3])
    >>> del _FACTORIES["means"]
    """
    if name in _FACTORIES:
        raise ValueError(f"The features {name!r} already exist; use another name.")
    _FACTORIES[name] = factory


def feature_names() -> tuple[str, ...]:
    """Return the names that `load_features` knows."""
    return tuple(_FACTORIES)


def _demo(device: str | torch.device, weights: Weights, sha256: str | None) -> FeatureExtractor:
    """Load the embedded network."""
    from gas_ext.teachers import demo

    _refuse_weights("demo", weights)
    network = demo.load_demo_features(device)
    return FeatureExtractor(
        name="demo",
        size=64,
        embed=network,
        weights_hash=file_hash(demo.WEIGHTS / "features.safetensors"),
        device=device,
        feature_maps=network.feature_maps,
    )


def _efficientnet(device: str | torch.device, weights: Weights, sha256: str | None) -> FeatureExtractor:
    """Load means over positions of block 10: 112 channels, few enough for a few thousand samples."""
    _refuse_weights("efficientnet-lite0", weights)
    network = EfficientNetFeatures().to(device)
    block = network.blocks.index(10)
    return FeatureExtractor(
        name="efficientnet-lite0",
        size=112,
        embed=lambda images: network(images)[block].mean(dim=(2, 3)),
        weights_hash=network.weights_hash,
        device=device,
        feature_maps=network,
    )


def _refuse_weights(name: str, weights: Weights) -> None:
    if weights is not None:
        raise ValueError(f"{name} comes with its weights; omit {Path(weights)}, or use other features.")


_FACTORIES: dict[str, Factory] = {
    "demo": _demo,
    "efficientnet-lite0": _efficientnet,
    "inception-clean": partial(load_inception, "inception-clean"),
    "inception-legacy": partial(load_inception, "inception-legacy"),
    "inception-edm": partial(load_inception, "inception-edm"),
}
