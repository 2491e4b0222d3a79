"""Snapshots of small EDM networks, pickled as the public code does it, without that code."""

import pickle
import sys
from types import ModuleType
from unittest import mock

import torch
from torch import nn

from gas_ext.teachers.edm import EDMTeacher
from gas_ext.teachers.edm.preconditioning import PRECONDITIONINGS

SONG = {
    "network": "SongUNet",
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
}


def _reconstruct_persistent_obj(record):
    raise AssertionError("must never be called")


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


class Persistent:
    """Pickles into a call of torch_utils.persistence, as every class of the public code does."""

    def __init__(self, name: str, state: dict):
        self.name, self.state = name, state

    def __reduce__(self):
        record = {"type": "class", "version": 6, "module_src": "", "class_name": self.name}
        return _reconstruct_persistent_obj, ({**record, "state": self.state},)


def persistent(module: nn.Module, **state) -> Persistent:
    """A module with its parameters and children."""
    children = {name: persistent(child) for name, child in module.named_children()}
    own = {
        "_parameters": dict(module._parameters),
        "_buffers": dict(module._buffers),
        "_modules": children,
        "_non_persistent_buffers_set": set(),
    }
    return Persistent(type(module).__name__, {**own, **state})


def snapshot(teacher: EDMTeacher, *, arguments: dict | None = None, **state) -> bytes:
    """The pickle of a teacher; `arguments` and `state` replace those of the file."""
    network = teacher.network
    size = teacher.sample_shape[-1]
    inner = {key: value for key, value in teacher.architecture.items() if key != "network"}
    described = {
        "img_resolution": size,
        "img_channels": teacher.sample_shape[0],
        "model_type": teacher.architecture["network"],
        **inner,
        "dropout": 0.1,
        **(arguments or {}),
    }
    described = {key: value for key, value in described.items() if value is not ...}
    constants = PRECONDITIONINGS[network.preconditioning].constants
    ema = persistent(network, **{**constants, "_init_args": (), "_init_kwargs": described, **state})
    ema.name = network.preconditioning
    package = ModuleType("torch_utils.persistence")
    package._reconstruct_persistent_obj = _reconstruct_persistent_obj
    with mock.patch.dict(sys.modules, {"torch_utils": package, "torch_utils.persistence": package}):
        return pickle.dumps({"ema": ema, "loss_fn": None}, 4)


def tuple_of_tuples() -> tuple:
    """A tuple of the one before, twice, a hundred times: 2^100 leaves to compare, hash or print."""
    value: tuple = ()
    for _ in range(100):
        value = (value, value)
    return value


def shared(count: int) -> dict:
    """One large tensor under many names."""
    tensor = torch.zeros(1000, 1000)
    return {f"w{i}": tensor for i in range(count)}
