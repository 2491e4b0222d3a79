"""Loading a teacher the same way whatever torch's global defaults are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def plain_defaults() -> Iterator[None]:
    """Make new tensors float32 and on the CPU; also a decorator.

    A network also computes numbers that are not in its file, such as frequencies: without this, different
    networks could have the same `weights_hash`.
    """
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)
