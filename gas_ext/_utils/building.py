"""Networks described by a file: built only as far as the file has weights for them."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from gas_ext._utils.records import shown

_Network = TypeVar("_Network", bound=nn.Module)
_SPARE = 100  # parameters that a constructor may make and discard


@contextmanager
def counted(weights: Collection[object]) -> Iterator[None]:
    """Raise ValueError if modules are built with far more parameters than a file has weights."""
    left = 4 * len(weights) + _SPARE
    thread = threading.get_ident()

    def count(module: nn.Module, name: str, parameter: object) -> None:
        nonlocal left
        left -= threading.get_ident() == thread
        if left < 0:
            raise ValueError(f"it describes a network of more than its {len(weights)} tensors")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def described_by(weights: Collection[object]) -> Iterator[None]:
    """As `counted`, and on "meta", where sizes take no memory.

    >>> with described_by(["weight", "bias"]):
    ...     layer = nn.Linear(10**9, 10**9)
    >>> layer.weight.device
    device(type='meta')
    """
    with counted(weights), torch.device("meta"):
        yield


def check_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raise ValueError, naming the first difference, unless the weights are those of the network."""
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    described = f"{type(network).__name__} as described"
    for name in {**wanted, **found}:
        if wanted.get(name) != found.get(name):
            has, needs = found.get(name, "absent"), wanted.get(name, "no such tensor")
            raise ValueError(f"its tensor {shown(name)} is {has}, but the {described} has {needs}")
    for name, value in network.state_dict().items():
        if weights[name].is_floating_point() != value.is_floating_point():
            raise ValueError(f"its tensor {shown(name)} is {weights[name].dtype} instead of {value.dtype}")


def filled(network: _Network, weights: Mapping[str, Tensor]) -> _Network:
    """Give a network on "meta" its weights, once they are checked, and freeze it.

    They are copied out of the mapped file, which may change later.
    """
    check_weights(network, weights)
    network.load_state_dict({name: weight.clone() for name, weight in weights.items()}, assign=True)
    return network.requires_grad_(False).eval()
