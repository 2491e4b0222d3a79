"""Published R3GAN snapshots, read without running code and with this library's names."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from gas_ext._utils.records import reason_of
from gas_ext.safe_pickle import PickledObject, read_pickle, state_dict_of
from gas_ext.training.discriminators.r3gan import R3GANConfig, R3GANDiscriminator

# Published names, as patterns, and ours.
_NAMES = (
    (r"ExtractionLayer\.Layer\.weight", r"extraction.weight"),
    (r"MainLayers\.(\d+)\.Layers\.(\d+)\.LinearLayer1\.Layer\.weight", r"stages.\1.blocks.\2.expand.weight"),
    (r"MainLayers\.(\d+)\.Layers\.(\d+)\.NonLinearity1\.Bias", r"stages.\1.blocks.\2.expand_bias"),
    (r"MainLayers\.(\d+)\.Layers\.(\d+)\.LinearLayer2\.Layer\.weight", r"stages.\1.blocks.\2.spatial.weight"),
    (r"MainLayers\.(\d+)\.Layers\.(\d+)\.NonLinearity2\.Bias", r"stages.\1.blocks.\2.spatial_bias"),
    (r"MainLayers\.(\d+)\.Layers\.(\d+)\.LinearLayer3\.Layer\.weight", r"stages.\1.blocks.\2.project.weight"),
    (r"MainLayers\.(\d+)\.Layers\.\d+\.Resampler\.Kernel", r"stages.\1.downsample.kernel"),
    (r"MainLayers\.(\d+)\.Layers\.\d+\.LinearLayer\.Layer\.weight", r"stages.\1.downsample.project.weight"),
    (r"MainLayers\.\d+\.Layers\.\d+\.Basis\.weight", r"head.basis.weight"),
    (r"MainLayers\.\d+\.Layers\.\d+\.LinearLayer\.weight", r"head.linear.weight"),
    (r"EmbeddingLayer\.weight", r"embedding.weight"),
)


def load_r3gan_snapshot(
    path: str | os.PathLike[str], *, network: str = "D", bfloat16: bool = True
) -> R3GANDiscriminator:
    """Load the discriminator of a published R3GAN snapshot (.pkl) without running code in it.

    Parameters
    ----------
    path : path
        A snapshot of R3GAN's training, in the older naming (``BaselineGAN``) or the newer one (``R3GAN``).
        Use `save_discriminator` for a file without the other networks.
    network : str
        Entry of the snapshot.
    bfloat16 : bool
        Compute the snapshot's bfloat16 stages in bfloat16; if False, compute all in float32.

    Raises
    ------
    ValueError
        If the file is refused (`gas_ext.safe_pickle`), or has no such network.

    Examples
    --------
    >>> discriminator = load_r3gan_snapshot("ffhq-64x64.pkl")  # doctest: +SKIP
    >>> save_discriminator(discriminator, "ffhq-64x64.safetensors")  # doctest: +SKIP
    """
    content = read_pickle(path)
    record = content.get(network) if isinstance(content, dict) else None
    if not isinstance(record, PickledObject) or record.name != "Discriminator":
        raise ValueError(f"{path} is not an R3GAN snapshot: it has no discriminator under {network!r}.")
    inner = _child(record, "Model")
    try:
        tensors = readable_state_dict(state_dict_of(inner or record))
        config = config_of(tensors)
        stages = _child(inner or record, "MainLayers")
        kinds = [_child(stages, str(index)) for index in range(len(config.widths))]
        if bfloat16:
            low = [n for n, kind in enumerate(kinds) if kind and kind.state.get("DataType") == torch.bfloat16]
            config = dataclasses.replace(config, bfloat16_stages=tuple(low))
        with torch.device("meta"):  # takes no memory, whatever sizes the file claims
            discriminator = R3GANDiscriminator(_sample_shape(tensors, config), config)
        discriminator.load_state_dict({n: tensor.clone() for n, tensor in tensors.items()}, assign=True)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = reason_of(error)
        raise ValueError(f"{path} is not a discriminator of R3GAN: {reason}.") from error
    return discriminator


def readable_state_dict(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a published state dict under the names of `R3GANDiscriminator`; ValueError for other names.

    Examples
    --------
    >>> list(readable_state_dict({"MainLayers.0.Layers.1.NonLinearity2.Bias": torch.zeros(4)}))
    ['stages.0.blocks.1.spatial_bias']
    """
    return {_readable(name): tensor for name, tensor in published.items()}


def _readable(name: str) -> str:
    for pattern, ours in _NAMES:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(ours)
    raise ValueError(f"its tensor {name[:100]!r} is unknown")


def config_of(tensors: Mapping[str, Tensor]) -> R3GANConfig:
    """Return the config of a state dict (under our names), in full precision; KeyError without a tensor."""
    stages = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("stages."))
    first = [tensors[f"stages.{n}.blocks.0.spatial.weight"] for n in range(stages)]
    widths = [len(tensors[f"stages.{n}.blocks.0.project.weight"]) for n in range(stages)]
    blocks = Counter(name.split(".")[1] for name in tensors if name.endswith(".spatial.weight"))
    taps: tuple[float, ...] = (1, 3, 3, 1)
    if stages > 1:
        line = tensors["stages.0.downsample.kernel"].double().sum(0)
        taps = tuple((line / line[line != 0].abs().min()).tolist())
    embedding = tensors.get("embedding.weight")
    return R3GANConfig(
        widths=tuple(widths),
        cardinalities=tuple(weight.shape[0] // weight.shape[1] for weight in first),
        blocks=tuple(blocks[str(n)] for n in range(stages)),
        expansion=len(first[0]) // widths[0],
        resampling_filter=taps,
        num_classes=0 if embedding is None else embedding.shape[1],
        embedding_dim=len(tensors["head.linear.weight"]),
    )


def _sample_shape(tensors: Mapping[str, Tensor], config: R3GANConfig) -> tuple[int, int, int]:
    """Return the image size: the final one, doubled for every stage before the last."""
    height, width = tensors["head.basis.weight"].shape[-2:]
    halvings = len(config.widths) - 1
    return tensors["extraction.weight"].shape[1], height << halvings, width << halvings


def _child(module: PickledObject | None, name: str) -> PickledObject | None:
    modules = module.state.get("_modules") if module is not None else None
    child = modules.get(name) if isinstance(modules, dict) else None
    return child if isinstance(child, PickledObject) else None
