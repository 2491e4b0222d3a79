"""Reads the golden data: `../shared/golden` beside the repository, or else the copy in tests/data/golden."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from toy_networks import GaussianMixture, TinyNoiseNet

from gas_ext import GeneralizedSolver, NoiseSchedule

_SHARED = Path(__file__).resolve().parents[2] / "shared" / "golden"
GOLDEN = _SHARED if _SHARED.is_dir() else Path(__file__).parent / "data" / "golden"

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
    """(file, case) of every solve under gs/ that is present."""
    files = index()["files"]
    return [
        (name, case)
        for name in sorted(files)
        if name.startswith("gs/") and (GOLDEN / name).is_file()
        for case in files[name]["cases"]
    ]


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
