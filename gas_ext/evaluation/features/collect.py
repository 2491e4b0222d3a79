"""Features of more images than fit in memory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from torch import Tensor

from gas_ext._utils.files import partial_file
from gas_ext.evaluation.features.extractor import FeatureExtractor

FeatureArray = np.ndarray[Any, np.dtype[np.float32]]


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
    >>> import torch
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
