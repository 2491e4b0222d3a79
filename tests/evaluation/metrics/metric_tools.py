"""Feature vectors for tests."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def normal(seed: int, count: int, size: int, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Normal vectors in float64."""
    generator = torch.Generator().manual_seed(seed)
    return mean + std * torch.randn(count, size, generator=generator, dtype=torch.float64)


def without(rows: Tensor, part: slice) -> Tensor:
    """Rows outside of a slice."""
    return torch.cat([rows[: part.start], rows[part.stop :]])


def mapped(features: Tensor, folder: Path) -> np.ndarray:
    """The same features, memory-mapped read-only from a new file in a folder."""
    path = folder / f"{len(list(folder.iterdir()))}.npy"
    np.save(path, features.numpy())
    return np.load(path, mmap_mode="r")
