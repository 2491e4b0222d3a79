"""Pickles built like R3GAN's snapshots: the published module names and nesting around given weights."""

import pickle
import re
import sys
import types
from contextlib import contextmanager

import torch
from torch import nn

from gas_ext.training.discriminators import R3GANDiscriminator
from gas_ext.training.discriminators.snapshots import readable_state_dict

_INNER = {
    r"": "Networks.Discriminator",
    r"MainLayers\.\d+": "Networks.DiscriminatorStage",
    r"MainLayers\.\d+\.Layers\.\d+\.NonLinearity\d": "FusedOperators.BiasedActivationCUDA",
    r"MainLayers\.\d+\.Layers\.\d+\.LinearLayer\d": "Networks.Convolution",
    r"MainLayers\.\d+\.Layers\.\d+\.Resampler": "Resamplers.InterpolativeDownsamplerCUDA",
    r"MainLayers\.\d+\.Layers\.\d+": "Networks.ResidualBlock",
    r"ExtractionLayer": "Networks.Convolution",
}


def published_state_dict(discriminator: R3GANDiscriminator) -> dict[str, torch.Tensor]:
    """The weights under the published names: the inverse of `readable_state_dict`, found by trying."""
    names = ["ExtractionLayer.Layer.weight"]
    if discriminator.embedding is not None:
        names.append("EmbeddingLayer.weight")
    blocks = discriminator.config.blocks
    for stage, count in enumerate(blocks):
        for block in range(count):
            start = f"MainLayers.{stage}.Layers.{block}"
            names += [f"{start}.LinearLayer{layer}.Layer.weight" for layer in (1, 2, 3)]
            names += [f"{start}.NonLinearity{layer}.Bias" for layer in (1, 2)]
        last = f"MainLayers.{stage}.Layers.{count}"
        names += [f"{last}.Resampler.Kernel", f"{last}.LinearLayer.Layer.weight"]
        if stage + 1 == len(blocks):
            names += [f"{last}.Basis.weight", f"{last}.LinearLayer.weight"]
    weights = discriminator.state_dict()
    found = {}
    for name in names:
        (ours,) = readable_state_dict({name: torch.empty(0)})
        if ours in weights:
            found[name] = weights.pop(ours)
    assert not weights, f"no published name for {list(weights)}"
    return found


@contextmanager
def _modules(prefix: str, trainer: str):
    """Modules with empty nn.Module classes of the published names, as long as they are needed."""
    made = {}

    def cls(path: str) -> type[nn.Module]:
        module, name = path.rsplit(".", 1)
        parts = module.split(".")
        for depth in range(1, len(parts) + 1):
            package = ".".join(parts[:depth])
            if package not in sys.modules:
                made[package] = sys.modules[package] = types.ModuleType(package)
        if not hasattr(sys.modules[module], name):
            setattr(sys.modules[module], name, type(name, (nn.Module,), {"__module__": module}))
        return getattr(sys.modules[module], name)

    try:
        yield lambda path: cls(f"{prefix}.{path}"), cls(f"{trainer}.Discriminator")
    finally:
        for package in made:
            del sys.modules[package]


def snapshot_bytes(discriminator: R3GANDiscriminator, legacy: bool = False) -> bytes:
    """A snapshot as R3GAN's training loop writes it, reduced to its discriminator."""
    prefix, trainer = (
        ("BaselineGAN", "training.networks_baseline") if legacy else ("R3GAN", "training.networks")
    )
    with _modules(prefix, trainer) as (cls, outer):
        root = outer()
        root.Model = _tree(published_state_dict(discriminator), "", cls)
        for index, stage in enumerate(root.Model.MainLayers):
            low = index in discriminator.config.bfloat16_stages
            stage.DataType = torch.bfloat16 if low else torch.float32
        return pickle.dumps({"D": root, "G": None, "cur_nimg": 7}, protocol=4)


def _tree(weights: dict[str, torch.Tensor], path: str, cls) -> nn.Module:
    """A module with the given tensors below `path`."""
    here = {name.removeprefix(f"{path}." if path else ""): tensor for name, tensor in weights.items()}
    children = dict.fromkeys(name.split(".")[0] for name in here if "." in name)
    if all(name.isdecimal() for name in children) and children:
        module = nn.ModuleList()
    else:
        known = [kind for pattern, kind in _INNER.items() if re.fullmatch(pattern, path)]
        module = cls(known[0])() if known else nn.Sequential()
    for name in children:
        below = f"{path}.{name}" if path else name
        part = {full: tensor for full, tensor in weights.items() if full.startswith(f"{below}.")}
        module.add_module(name, _tree(part, below, cls))
    for name, tensor in here.items():
        if name == "Kernel":
            module.register_buffer(name, tensor)
        elif "." not in name:
            module.register_parameter(name, nn.Parameter(tensor))
    return module
