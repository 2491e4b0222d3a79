"""The manifest of a sample folder: the settings of its samples, and the checksums of its shards.

Several processes write one folder without communicating. All derive the same settings; the first that
finishes a shard writes the manifest, the others compare theirs with it before they write a shard, and whoever
finds all shards in place adds their checksums. A complete folder can grow: its manifest stays unchanged until
the new shards are complete, and is then replaced by one that lists them all.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch

from gas_ext._utils.files import write_file
from gas_ext._utils.noise import stacked_noise
from gas_ext._utils.records import (
    COUNT,
    NUMBER,
    OPTIONAL_NUMBER,
    OPTIONAL_RECORD,
    RECORD,
    SHAPE,
    SIZE,
    TEXT,
    Field,
    Fields,
    check_record,
    shown,
)
from gas_ext._utils.seeds import MOST_SEEDS, parse_seeds

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
MOST_SHARDS = 100_000
_DIGITS = 7  # of numbers in the settings: the last bits of a logarithm differ between processors
_MOST_SHOWN = 3  # differences in an error message

Settings: TypeAlias = dict[str, Any]

_OPTIONAL_SHAPE = Field((list, type(None)), each=SIZE)
_SETTINGS: Fields = {
    "teacher": Field((dict,), inside=dict.fromkeys(("name", "weights_hash", "condition_kind"), TEXT)),
    "solver": OPTIONAL_RECORD,
    "guidance_scale": OPTIONAL_NUMBER,
    "seeds": TEXT,
    "samples": Field((int,), 1, MOST_SEEDS),
    "sample_shape": SHAPE,
    "image_shape": _OPTIONAL_SHAPE,
    "shard_size": SIZE,
}
_SHARD: Fields = {"samples": SIZE, "bytes": COUNT, "sha256": TEXT}
_FIELDS: Fields = {
    "settings": Field((dict,), inside=_SETTINGS),
    "first_noise": Field((list,), each=NUMBER),
    "made_with": RECORD,
    "shards": Field((dict, type(None)), each=Field((dict,), inside=_SHARD)),
    "nfe": Field((int, type(None)), 0),
    "grown_from": Field((list,), each=Field((dict,), inside=_SETTINGS)),
}


class ShardPlan(NamedTuple):
    """The samples of one shard, as indices, and the hash of the settings they are generated with."""

    rows: range
    run: str


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json."""

    settings: Settings  # everything the samples depend on, as `plain` returns it
    first_noise: list[float]  # of the first seed, to detect a generator that draws different noise
    made_with: dict[str, Any] = field(default_factory=dict)  # by the first process; not compared
    # Known once all shards exist: file name -> {"samples", "bytes", "sha256" of record and tensors}, and the
    # counted network evaluations per sample.
    shards: dict[str, dict[str, Any]] | None = None
    nfe: int | None = None
    # Settings with which the folder was complete before it grew; each extends the seeds of the one before.
    grown_from: list[Settings] = field(default_factory=list)

    @property
    def stages(self) -> list[Settings]:
        """Settings with which the folder has been, or will be, complete."""
        return [*self.grown_from, self.settings]

    @cached_property
    def plan(self) -> list[ShardPlan]:
        """The content of each shard; each stage begins with a new shard."""
        plan: list[ShardPlan] = []
        start = 0
        for settings in self.stages:
            end, size, run = settings["samples"], settings["shard_size"], _hash(settings)
            plan += [ShardPlan(range(row, min(row + size, end)), run) for row in range(start, end, size)]
            start = end
        return plan

    def fault(self) -> str | None:
        """Return how the settings contradict each other or the listed files, or None."""
        before = 0
        for settings in self.stages:
            try:
                seeds = len(parse_seeds(settings["seeds"]))
            except ValueError as error:
                return f"its seeds are damaged, {error}"
            if not before < settings["samples"] == seeds:
                return f"it has {seeds} seeds for {settings['samples']} samples after {before}"
            before = settings["samples"]
        if sum(-(-stage["samples"] // stage["shard_size"]) for stage in self.stages) > MOST_SHARDS:
            return f"it has more than {MOST_SHARDS} shards"
        numbers = math.prod(self.settings["sample_shape"])
        rows = {shard_name(number): len(shard.rows) for number, shard in enumerate(self.plan)}
        for name, entry in (self.shards or {}).items():
            if entry["samples"] != rows.get(name) or entry["bytes"] < 4 * numbers * entry["samples"]:
                return f"it lists {shown(name)}, which is not one of its shards, or too small for its samples"
        return None

    @property
    def complete(self) -> bool:
        """Whether all shards are listed."""
        return self.shards is not None and len(self.shards) == len(self.plan)

    def grown(self, longer: Manifest) -> Manifest:
        """Return the manifest of a folder with these samples, followed by the others of a longer one."""
        return replace(self, settings=longer.settings, nfe=None, grown_from=self.stages)

    def require_same(self, other: Manifest, folder: Path) -> None:
        """Raise ValueError, naming the differences, unless `other`, found in the folder, has these settings.

        It may also have grown from them.
        """
        differences = [] if self.settings in other.stages else _differences(self.settings, other.settings)
        if differences:
            more = len(differences) - _MOST_SHOWN
            listed = "; ".join(differences[:_MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")
            raise ValueError(
                f"{folder} holds samples made with other settings ({listed}); choose another folder, or use "
                "those settings."
            )
        other.check_noise(self.first_noise, folder)

    def check_noise(self, ours: list[float], folder: Path) -> None:
        """Raise ValueError unless this process draws the same noise, up to rounding, from the same seeds."""
        theirs = self.first_noise
        if len(ours) != len(theirs) or any(abs(a - b) >= 1e-4 for a, b in zip(ours, theirs, strict=True)):
            raise ValueError(
                f"{folder} was made with torch {self.made_with.get('torch')}, but torch {torch.__version__} "
                "draws other noise from the same seeds; use that version, or choose another folder."
            )


def shard_name(number: int) -> str:
    """Return the name of a shard's file."""
    return f"shard-{number:05d}.safetensors"


def plain(value: Any) -> Any:
    """Return settings as they come back from JSON, with numbers rounded to seven digits."""
    return json.loads(json.dumps(value), parse_float=lambda text: float(f"{float(text):.{_DIGITS}g}"))


def short_hash(value: Any) -> str:
    """Return 16 hexadecimal digits that represent a long value in the settings."""
    return _hash(plain(value))[:16]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def first_noise(seeds: Sequence[int], shape: Sequence[int]) -> list[float]:
    """Return the first numbers of the first seed's noise."""
    return [float(value) for value in stacked_noise(seeds[:1], shape).flatten()[:4]]


def _differences(ours: Any, theirs: Any, name: str = "") -> list[str]:
    """List the settings that differ, in their order, each with both values."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [
            line
            for key in dict.fromkeys((*ours, *theirs))
            for line in _differences(ours.get(key), theirs.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if ours == theirs else [f"{name} is {_brief(theirs)} there and {_brief(ours)} here"]


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a folder, or None if it has none; ValueError if it is damaged."""
    path = folder / MANIFEST
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"it is not JSON, {error}") from error
    if not isinstance(record, dict) or record.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"{path} is not a manifest of samples of format {FORMAT_VERSION}.")
    if record.pop("sha256", None) != _hash(record):
        raise _damaged(path, "it does not match its own SHA-256")
    check_record({"nfe": None, "grown_from": [], **record}, _FIELDS, path)
    manifest = Manifest(**{name: value for name, value in record.items() if name in _FIELDS})
    fault = manifest.fault()
    if fault is not None:
        raise _damaged(path, fault)
    return manifest


def _damaged(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"{path} is damaged ({reason}); delete it and generate the samples again with the same settings, "
        "which reuses the existing shards."
    )


def write_manifest(folder: Path, manifest: Manifest, *, replace: bool = True) -> None:
    """Write a manifest, sealed with its own SHA-256, atomically."""
    record = {"format_version": FORMAT_VERSION, **asdict(manifest)}
    text = json.dumps({**record, "sha256": _hash(record)}, indent=2) + "\n"
    write_file(folder / MANIFEST, text.encode(), replace=replace)
