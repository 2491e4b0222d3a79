"""The golden CompVis checkpoints, written from the recipe in their manifests."""

import hashlib
import json
import math
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import torch
from golden_data import GOLDEN, arrays, note
from numpy.random import RandomState  # whose stream is frozen, unlike that of newer generators
from torch import Tensor

FOLDER = GOLDEN / "ldm"
TOLERANCE = 5e-5


def names(*families: str) -> list[str]:
    """Checkpoints of the given families ("cin", "lsun", "sd")."""
    found = sorted(path.stem for path in FOLDER.glob("*.json"))
    return [name for name in found if name.split("_")[0] in families]


@cache
def manifest(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text())


def data(name: str) -> dict[str, np.ndarray]:
    return arrays(f"ldm/{name}.npz")


def array(name: str, key: str) -> Tensor:
    return torch.from_numpy(data(name)[key])


def compare(record, name: str, key: str, found: Tensor) -> None:
    """Assert that a stored array is reproduced, and record the largest difference for the summary."""
    difference = (found - array(name, key)).abs().max().item()
    note(record, f"ldm/{name}", key.split("/")[0], difference, key)
    assert difference <= TOLERANCE, key


def loading_options(name: str) -> dict:
    """What the tensors do not state, from the arguments that the reference network was built with."""
    constructor = manifest(name)["constructor"]
    options = {"latent_size": constructor["latent_diffusion"]["image_size"]}
    unet = constructor["unet"]
    if name.startswith("lsun"):
        return {**options, "num_head_channels": unet["num_head_channels"]}
    options["num_heads"] = unet["num_heads"]
    if name.startswith("sd"):
        options["text_heads"] = constructor["cond_stage"]["clip_text_config"]["num_attention_heads"]
    return options


def recipe_tensor(recipe: str, shape: list[int], seed: int) -> np.ndarray:
    """Uniform numbers u in [-1, 1), scaled by what the tensor is for."""
    u = 2.0 * RandomState(seed).random_sample(tuple(shape)) - 1.0
    if recipe == "fan":  # weights of layers: variance 1 / fan-in
        u *= np.sqrt(3.0) / np.sqrt(float(math.prod(shape[1:])))
    elif recipe == "emb":  # tables: variance 1
        u *= np.sqrt(3.0)
    elif recipe == "norm":
        u = 1.0 + 0.35 * u
    else:
        assert recipe == "bias"
        u *= 0.35
    return u.astype(np.float32)


def state_dict(name: str) -> dict[str, Tensor]:
    """The tensors of a manifest, compared with their checksums; buffers that are not stored are left out."""
    record, buffers, tensors = manifest(name), data(name), {}
    for key, shape, dtype, recipe, constant, digest in record["state_dict"]:
        if recipe == "const":
            value = np.full(shape, constant, dtype)
        elif recipe == "buf":
            if f"buffers/{key}" not in buffers:
                continue
            value = buffers[f"buffers/{key}"]
        else:
            value = recipe_tensor(recipe, shape, zlib.crc32(f"{record['seed']}:{key}".encode()))
        value = np.ascontiguousarray(value).reshape(shape)
        assert hashlib.sha256(value.tobytes()).hexdigest()[:16] == digest, key
        tensors[key] = torch.from_numpy(value.copy())
    return tensors


def write_checkpoint(tensors: dict[str, Tensor], path: Path) -> Path:
    """Write a .ckpt with everything that PyTorch Lightning stores in addition to the weights."""
    extras = {"callbacks": {}, "optimizer_states": [], "lr_schedulers": [], "global_step": 0, "epoch": 0}
    torch.save({**extras, "pytorch-lightning_version": "1.4.2", "state_dict": tensors}, path)
    return path


def network_times(name: str, key: str) -> Tensor:
    """The network's times of a stored output such as "eps_uncond/t_frac"."""
    return array(name, key.split("/")[1]).double()


def outputs(name: str, quantity: str) -> list[str]:
    """Keys of the stored outputs of one quantity: "eps", "eps_uncond", ..."""
    return [key for key in data(name) if key.split("/")[0] == quantity]


def real_tensors(name: str) -> dict[str, Tensor]:
    """Tensors without memory under the names and with the shapes of a full-size published model."""
    keys = json.loads((FOLDER / f"realkeys_{name}.json").read_text())["keys"]
    tensors = {
        key: torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for key, shape, dtype in keys
    }
    return {**tensors, "alphas_cumprod": torch.linspace(0.999, 0.005, 1000)}


def real_names() -> list[str]:
    return sorted(path.stem.removeprefix("realkeys_") for path in FOLDER.glob("realkeys_*.json"))
