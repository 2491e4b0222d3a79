"""Feature extractors by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

import torch

from gas_ext._utils.files import file_hash
from gas_ext.evaluation.features.extractor import FeatureExtractor
from gas_ext.evaluation.features.inception import load_inception
from gas_ext.training.losses import EfficientNetFeatures

Weights = str | os.PathLike[str] | None


class Factory(Protocol):
    """Makes an extractor on a device, from a file of weights where it takes one."""

    def __call__(self, device: str | torch.device, weights: Weights, sha256: str | None) -> FeatureExtractor:
        """Return the extractor."""


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
        "demo": the embedded network, for gray 32x32 images. "efficientnet-lite0": an ImageNet network in a
        package (extra "perceptual"). "inception-clean", "inception-legacy", "inception-edm": see
        `gas_ext.evaluation.features.inception.load_inception`. Or a name given to `register_features`.
    device : device
        Where the network is put.
    weights : path, optional
        A file of weights, for the Inception networks.
    sha256 : str, optional
        SHA-256 (hex) of this file, if it is meant to be another one than the published.

    Raises
    ------
    ValueError
        If there is no such extractor, or the file is not the expected one.
    ImportError, FileNotFoundError
        If a file or package that it needs is missing; the message says where to get it.

    Examples
    --------
    >>> features = load_features("demo")
    >>> features(torch.zeros(2, 1, 32, 32)).shape
    torch.Size([2, 64])
    """
    if name not in _FACTORIES:
        raise ValueError(f"unknown features {name!r}: use one of {', '.join(feature_names())}")
    return _FACTORIES[name](device, weights, sha256)


def register_features(name: str, factory: Factory) -> None:
    """Add an extractor of your own under a name that is still free.

    Raises
    ------
    ValueError
        If the name is taken.

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
        raise ValueError(f"the features {name!r} exist already; take another name")
    _FACTORIES[name] = factory


def feature_names() -> tuple[str, ...]:
    """Names that `load_features` knows.

    Examples
    --------
    >>> feature_names()
    ('demo', 'efficientnet-lite0', 'inception-clean', 'inception-legacy', 'inception-edm')
    """
    return tuple(_FACTORIES)


def _demo(device: str | torch.device, weights: Weights, sha256: str | None) -> FeatureExtractor:
    """Return the embedded network's extractor."""
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
    """Return means over positions of block 10: 112 channels, few enough for some thousand samples."""
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
        raise ValueError(f"{name} comes with its weights; leave out {Path(weights)}, or take other features")


def _inception(name: str) -> Factory:
    """Return the factory of an Inception convention."""

    def factory(device: str | torch.device, weights: Weights, sha256: str | None) -> FeatureExtractor:
        return load_inception(name, device, weights, sha256)

    return factory


_FACTORIES: dict[str, Factory] = {
    "demo": _demo,
    "efficientnet-lite0": _efficientnet,
    **{f"inception-{rule}": _inception(f"inception-{rule}") for rule in ("clean", "legacy", "edm")},
}
