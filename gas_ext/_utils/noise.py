"""Seeds, noise and images: everything between a list of integers and a PNG file.

A sample belongs to its seed: its noise is drawn by its own generator, and so does not depend on the batch,
the batch size, or the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gas_ext._utils.checks import whole_numbers
from gas_ext._utils.files import partial_file

_SEED_MODULUS = 2**32  # mt19937 is seeded with 32 bits; larger and negative seeds wrap around


def stacked_noise(
    seeds: Sequence[int],
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw the initial noise of each seed from its own generator.

    Parameters
    ----------
    seeds : sequence of int
        One seed per sample, taken modulo 2**32.
    shape : sequence of int
        Shape of one sample, without the batch dimension.
    dtype : torch.dtype
        Floating dtype of the draw. Default: float32. float64 draws of a seed are different numbers.
    device : torch.device or str
        Where the result is put. Default: the CPU, where it is always drawn.

    Returns
    -------
    Tensor
        ``(len(seeds), *shape)``.

    Examples
    --------
    >>> a = stacked_noise([5, 6, 7], (2, 2))
    >>> b = stacked_noise([7], (2, 2))
    >>> torch.equal(a[2:], b)
    True
    """
    numbers, sizes = whole_numbers("seeds", seeds), tuple(whole_numbers("shape", shape))
    if min(sizes, default=0) < 0 or not dtype.is_floating_point:
        raise ValueError(f"Noise cannot be {dtype} of shape {sizes}; give sizes from 0, and a float dtype.")
    if not numbers:
        return torch.empty((0, *sizes), dtype=dtype, device=device)
    # Always drawn on the CPU (mt19937), so that a seed means the same noise on every device.
    generators = [torch.Generator().manual_seed(seed % _SEED_MODULUS) for seed in numbers]
    draws = [torch.randn(sizes, generator=g, dtype=dtype, device="cpu") for g in generators]
    return torch.stack(draws).to(device)


def seed_labels(seeds: Sequence[int], num_classes: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the class label of each seed, ``seed % num_classes``, as an int64 tensor."""
    labels = np.fromiter((int(seed) % num_classes for seed in seeds), np.int64, len(seeds))
    return torch.from_numpy(labels).to(device)


def take(condition: Any, index: Tensor | slice) -> Any:
    """Select samples of a condition: a tensor, None, or a dict, list or tuple of these.

    >>> take({"label": torch.arange(5), "scale": None}, slice(1, 3))
    {'label': tensor([1, 2]), 'scale': None}
    """
    if condition is None:
        return None
    if isinstance(condition, Tensor):
        return condition[index.to(condition.device) if isinstance(index, Tensor) else index]
    if isinstance(condition, Mapping):
        return {name: take(value, index) for name, value in condition.items()}
    if isinstance(condition, list | tuple):
        parts = [take(value, index) for value in condition]
        # A named tuple takes its fields one by one.
        return type(condition)(*parts) if hasattr(condition, "_fields") else type(condition)(parts)
    raise TypeError(
        f"A condition of type {type(condition).__name__} cannot be split; use tensors or containers of them."
    )


def to_uint8(images: Tensor, *, truncate: bool = False) -> Tensor:
    """Quantize images from [-1, 1] to 0..255.

    The rule is ``floor(127.5 x + 128)``, clamped: values are rounded to the nearest level. With `truncate` it
    is ``floor(127.5 (x + 1))``, the level below, as in the published pipelines of latent diffusion (see
    `Denoiser.truncates`).

    >>> images = torch.tensor([-1.2, -1.0, 0.0, 1.0])
    >>> to_uint8(images).tolist(), to_uint8(images, truncate=True).tolist()
    ([0, 0, 128, 255], [0, 0, 127, 255])
    """
    return to_bytes(images, truncate=truncate).to(torch.uint8)


def to_bytes(images: Tensor, *, truncate: bool = False) -> Tensor:
    """Return the levels of `to_uint8` as floats; NaN stays NaN."""
    levels = (images + 1.0) * 127.5 if truncate else images * 127.5 + 128.0
    return levels.floor().clamp(0, 255)


def image_grid(images: Tensor, columns: int, padding: int = 2, background: float = 1.0) -> Tensor:
    """Tile images ``(B, C, H, W)`` into one, row by row.

    `padding` pixels of value `background` separate neighbors and surround the grid.
    """
    if images.ndim != 4:
        raise ValueError(
            f"The images have shape {tuple(images.shape)}; expected (batch, channels, height, width)."
        )
    if columns < 1:
        raise ValueError(f"columns is {columns}, but must be at least 1.")
    batch, channels, height, width = images.shape
    rows = -(-batch // columns)
    grid = images.new_full(
        (channels, rows * (height + padding) + padding, columns * (width + padding) + padding), background
    )
    for index, image in enumerate(images):
        top = padding + (index // columns) * (height + padding)
        left = padding + (index % columns) * (width + padding)
        grid[:, top : top + height, left : left + width] = image
    return grid


def save_png(image: Tensor, path: str | Path, scale: int = 1, *, truncate: bool = False) -> None:
    """Write an image ``(C, H, W)`` in [-1, 1], C = 1 or 3, as a PNG file, atomically.

    `scale` enlarges it by repeating pixels; for `truncate` see `to_uint8`.
    """
    from PIL import Image

    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"The image has shape {tuple(image.shape)}; expected (1 or 3, height, width).")
    pixels = to_uint8(image.detach().float().cpu(), truncate=truncate).permute(1, 2, 0)
    pixels = pixels.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    array = pixels.squeeze(-1).numpy()
    with partial_file(Path(path)) as partial:
        Image.fromarray(array).save(partial, format="PNG")
