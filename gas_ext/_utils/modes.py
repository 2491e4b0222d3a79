"""Contexts in which a network is evaluated: mode, gradients, precision, determinism."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def in_precision(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Return autocast to a dtype, or a context without effect for None."""
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


@contextmanager
def evaluating(
    network: nn.Module, device: torch.device, autocast: torch.dtype | None = None
) -> Iterator[None]:
    """Compute without gradients, in evaluation mode, and in the given precision.

    >>> layer = nn.Linear(2, 1)
    >>> with evaluating(layer, torch.device("cpu")):
    ...     layer.training, layer(torch.zeros(1, 2)).requires_grad
    (False, False)
    >>> layer.training
    True
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad(), in_precision(device, autocast):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def deterministic(threads: int | None = None) -> Iterator[None]:
    """Restrict cuDNN to deterministic algorithms; use `threads` CPU threads, if given."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic, torch.get_num_threads()
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before[:2]
        if threads is not None:
            torch.set_num_threads(before[2])


@contextmanager
def frozen(network: Any) -> Iterator[None]:
    """Keep a network's parameters out of graphs built inside the context; a function has none."""
    parameters = network.parameters() if isinstance(network, nn.Module) else ()
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


@contextmanager
def learning_through(network: Any, device: torch.device) -> Iterator[None]:
    """Keep the network's parameters out of graphs, and the caller's random generators as they are."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []), frozen(network):
        yield
