"""A network that maps images to feature vectors, with its record, and the features of many images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from gas_ext._utils.files import partial_file
from gas_ext._utils.noise import to_bytes

INPUT_RANGE = "[-1, 1]"
FeatureArray = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class FeatureExtractor:
    """Maps images ``(B, C, H, W)`` in [-1, 1] to feature vectors ``(B, F)`` in float32, without gradients.

    Parameters
    ----------
    name : str
        Its name, recorded with every number measured with it.
    size : int
        F, the length of a feature vector.
    embed : callable
        The network, from images to vectors. With a quantization, images are bytes as float32 in [0, 255].
    weights_hash : str
        SHA-256 of the weights.
    resize : str
        Description of how images are resized before or inside the network; default "none".
    quantization : "none", "uint8" or "uint8-truncated"
        How images are first converted to bytes, as if saved as 8-bit images and read again:
        ``floor(127.5 x + 128)`` or, truncated, ``floor(127.5 (x + 1))``, clipped to [0, 255].
        Default "none".
    device : device
        Where the network is; images are moved there. Default "cpu".
    is_inception : bool
        Whether this is the Inception network that defines FID and KID.
    feature_maps : callable, optional
        Maps images in [-1, 1] to maps ``(B, F_l, H_l, W_l)`` for
        `gas_ext.evaluation.metrics.perceptual_distances`.

    Examples
    --------
    >>> means = FeatureExtractor("channel means", 3, lambda images: images.mean(dim=(2, 3)))
    >>> means(torch.zeros(2, 3, 8, 8))
    tensor([[0., 0., 0.],
            [0., 0., 0.]])
    >>> means.frechet_name
    'Frechet distance (channel means)'
    """

    name: str
    size: int
    embed: Callable[[Tensor], Tensor]
    weights_hash: str = ""
    resize: str = "none"
    quantization: Literal["none", "uint8", "uint8-truncated"] = "none"
    device: str | torch.device = "cpu"
    is_inception: bool = False
    feature_maps: Callable[[Tensor], Sequence[Tensor]] | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the features ``(B, F)``; a NaN pixel makes its image's features NaN.

        Raises ValueError if the images are not a floating-point batch of gray or RGB images.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.is_floating_point():
            raise ValueError(
                f"The images for {self.name} are {images.dtype} of shape {tuple(images.shape)}, but must be "
                "floating-point of shape (batch, 1 or 3, height, width), in [-1, 1]."
            )
        batch = images.detach().to(self.device, torch.float32)
        if self.quantization != "none":
            batch = to_bytes(batch, truncate=self.quantization == "uint8-truncated")
        features = self.embed(batch).float()
        if features.shape != (len(images), self.size):
            raise ValueError(
                f"{self.name} returned features of shape {tuple(features.shape)}, but they must have shape "
                f"{(len(images), self.size)}; correct its size or embed."
            )
        return features

    def truncated(self) -> FeatureExtractor:
        """Return this extractor with truncated bytes, for a model with `Denoiser.truncates`."""
        return self if self.quantization == "none" else replace(self, quantization="uint8-truncated")

    @property
    def frechet_name(self) -> str:
        """Name of the Frechet distance of these features: "FID" only for Inception."""
        return f"{'FID' if self.is_inception else 'Frechet distance'} ({self.name})"

    @property
    def kernel_name(self) -> str:
        """Name of the kernel distance of these features: "KID" only for Inception."""
        return f"{'KID' if self.is_inception else 'kernel distance'} ({self.name})"

    def describe(self) -> dict[str, Any]:
        """Return the record that is stored with every number, as plain values."""
        return {
            "extractor": self.name,
            "size": self.size,
            "weights_sha256": self.weights_hash,
            "resize": self.resize,
            "quantization": self.quantization,
            "input_range": INPUT_RANGE,
            "frechet_name": self.frechet_name,
            "kernel_name": self.kernel_name,
        }


def collect_features(
    batches: Iterable[Tensor],
    extractor: FeatureExtractor,
    count: int,
    path: str | os.PathLike[str] | None = None,
) -> FeatureArray:
    """Return the features of all batches of images, ``(count, F)`` float32.

    Parameters
    ----------
    batches : iterable of Tensor
        Images ``(B, C, H, W)`` in [-1, 1]; memory holds one batch at a time.
    extractor : FeatureExtractor
        The network.
    count : int
        Number of images; ValueError if there are fewer or more.
    path : path, optional
        A .npy file for the features, written atomically. The result is then memory-mapped, and memory does
        not grow with `count`. Default: the features stay in memory.

    Examples
    --------
    >>> means = FeatureExtractor("means", 3, lambda images: images.mean(dim=(2, 3)))
    >>> collect_features(iter([torch.zeros(4, 3, 2, 2), torch.ones(1, 3, 2, 2)]), means, 5)[4]
    array([1., 1., 1.], dtype=float32)
    """
    if path is None:
        features = np.empty((count, extractor.size), np.float32)
        _fill(features, batches, extractor)
        return features
    target = Path(path)
    with partial_file(target) as partial:
        mapped = open_memmap(partial, mode="w+", dtype=np.float32, shape=(count, extractor.size))
        _fill(mapped, batches, extractor)
        mapped.flush()
    loaded: FeatureArray = np.load(target, mmap_mode="r")
    return loaded


def _fill(features: FeatureArray, batches: Iterable[Tensor], extractor: FeatureExtractor) -> None:
    done = 0
    for images in batches:
        if done + len(images) > len(features):
            raise ValueError(f"There are more than {len(features)} images; correct count.")
        features[done : done + len(images)] = extractor(images).cpu().numpy()
        done += len(images)
    if done < len(features):
        raise ValueError(f"There are {done} images, but count is {len(features)}; correct count.")
