"""Reads the golden data: results of the public code, stored as .xz files in tests/data/golden."""

import json
import lzma
from functools import cache
from pathlib import Path

import numpy as np
import torch
from build_cache import cached, hash_of
from torch import Tensor
from toy_networks import GaussianMixture, TinyNoiseNet

from gas_ext import GeneralizedSolver, NoiseSchedule

STORED = Path(__file__).resolve().parent / "data" / "golden"


def _unpack(folder: Path) -> Path:
    for path in STORED.rglob("*.xz"):
        target = folder / "golden" / path.relative_to(STORED).with_suffix("")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(lzma.decompress(path.read_bytes()))
    return folder / "golden"


GOLDEN = cached("golden", hash_of([], STORED.rglob("*.xz")), _unpack)

# (family, quantity) -> (largest value, where it was met)
GoldenRecord = dict[tuple[str, str], tuple[float, str]]

# A solver's parameters and their names in the golden arrays.
PARAMETERS = {
    "timestep_logits": "mu_logit",
    "time_offsets": "t_couple",
    "data_corrections": "c",
    "state_corrections": "a",
}


def note(record: GoldenRecord, family: str, quantity: str, value: float, where: str) -> None:
    """Keep the largest value of a family."""
    if value > record[family, quantity][0]:
        record[family, quantity] = (value, where)


@cache
def index() -> dict:
    return json.loads((GOLDEN / "index.json").read_text())


@cache
def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / name) as file:
        return {key: file[key] for key in file.files}


def tensor(array: np.ndarray, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.from_numpy(np.asarray(array)).to(dtype)


def solver_cases() -> list[tuple[str, str]]:
    """(file, case) of every solve under gs/."""
    files = index()["files"]
    return [(name, case) for name in sorted(files) if name.startswith("gs/") for case in files[name]["cases"]]


def knots(table: str, variant: str) -> NoiseSchedule:
    """A discrete schedule from stored knots: table "ldm" or "sd", variant "f32" or "f64"."""
    data = arrays("schedules.npz")
    prefix = f"discrete_{table}/{variant}/"
    return NoiseSchedule.from_knots(data[prefix + "t_array"], data[prefix + "log_alpha_array"])


def schedule_of(entry: dict) -> NoiseSchedule:
    """The schedule of a file of gs/ or checkpoints/."""
    if entry["kind"] == "linear":
        return NoiseSchedule.vp_from_edm(t_eps=entry["t_eps"])
    table = "ldm" if entry["kind"] == "discrete" else "sd"
    variant = "f64" if entry.get("f64_knots", "").startswith("float64") else "f32"
    return knots(table, variant)


def network_of(tag: str, schedule: NoiseSchedule, dtype: torch.dtype):
    """A toy network by its tag, and its prediction type."""
    weights = {
        key.split("/")[1]: tensor(value, dtype)
        for key, value in arrays("toynets.npz").items()
        if key.startswith(f"{tag}/")
    }
    if tag.startswith("gm"):
        mixture = GaussianMixture(weights["mean"], weights["std"], weights["logw"])
        return mixture.as_denoiser(schedule), "sample"
    return TinyNoiseNet(weights), "epsilon"


def fill(solver: GeneralizedSolver, values: dict[str, np.ndarray], prefix: str, dtype: torch.dtype) -> None:
    """Set a solver's parameters from golden arrays."""
    for name, key in PARAMETERS.items():
        getattr(solver, name).data = tensor(values[prefix + key], dtype).clone()
