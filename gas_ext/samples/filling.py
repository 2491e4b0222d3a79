"""Filling a folder with shards: distributed by number, checked, and regenerated if damaged."""

from __future__ import annotations

import bisect
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gas_ext._utils.files import check_output_folder
from gas_ext._utils.processes import Launch
from gas_ext._utils.progress import Advance, Reporter, SilentReporter
from gas_ext._utils.seeds import SeedList, parse_seeds
from gas_ext.samples.manifest import (
    MANIFEST,
    MOST_SHARDS,
    Manifest,
    read_manifest,
    shard_name,
    write_manifest,
)
from gas_ext.samples.shard import REMEDY, Shard, seal, write_shard

_FOREIGN = "belongs to samples made with other settings"
_LEFT_OVER = "remains from an attempt to generate other samples"


class Content(NamedTuple):
    """The content of one shard, except its seeds."""

    tensors: Mapping[str, Tensor]
    prompts: list[str] | None
    nfe: int | None


MakeShard = Callable[[range, Advance], Content]


class SampleFolder:
    """A folder of samples, which need not exist yet, and its manifest, existing or planned.

    The settings alone decide which samples are in which shard, never the number of processes.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> SampleFolder:
        """Open a folder that has a manifest; ValueError if it has none."""
        path = Path(path)
        manifest = read_manifest(path)
        if manifest is None:
            raise ValueError(
                f"{path} holds no teacher samples ({MANIFEST} is missing); generate them with gas-ext teach."
            )
        return cls(path, manifest)

    @cached_property
    def seeds(self) -> SeedList:
        """Seeds of all samples, in their order."""
        return parse_seeds(self.manifest.settings["seeds"])

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self.manifest.plan)

    def rows(self, number: int) -> range:
        """Return the indices of a shard's samples."""
        return self.manifest.plan[number].rows

    def find(self, index: int) -> tuple[int, int]:
        """Return the number of the shard that holds a sample, and its row in the shard."""
        plan = self.manifest.plan
        number = bisect.bisect_right(plan, index, key=lambda shard: shard.rows.start) - 1
        return number, index - plan[number].rows.start

    def shard_path(self, number: int) -> Path:
        """Return the file of a shard."""
        return self.path / shard_name(number)

    def damage(self, number: int, *, contents: bool) -> str | None:
        """Return what is wrong with a shard, or None; `contents` also compares its SHA-256, reading all."""
        path = self.shard_path(number)
        if not path.is_file():
            return "is missing"
        try:
            shard = Shard(path)
        except ValueError:
            return "is truncated or has a damaged header"
        listed = (self.manifest.shards or {}).get(path.name)
        if contents and not shard.is_intact():
            return "does not match its SHA-256"
        if shard.record["run"] != self.manifest.plan[number].run or shard.record["number"] != number:
            # Shards that a once complete folder does not list can only be leftovers.
            return _FOREIGN if listed is not None or not self.manifest.grown_from else _LEFT_OVER
        if listed is not None and shard.record["sha256"] != listed["sha256"]:
            return "differs from the one that the manifest lists"
        return None

    def shard(self, number: int) -> Shard:
        """Open a shard without reading its tensors; ValueError if it is not the expected one."""
        damage = self.damage(number, contents=False)
        if damage is not None:
            raise ValueError(f"{self.shard_path(number)} {damage}; {REMEDY}.")
        shard, settings = Shard(self.shard_path(number)), self.manifest.settings
        shapes = {"samples": settings["sample_shape"], "images": settings["image_shape"]}
        shard.check_content(len(self.rows(number)), shapes)
        return shard

    def join(self) -> bool:
        """Adopt the existing manifest, and return whether there is one; ValueError if its settings differ.

        The manifest of a folder that is growing is not adopted: it stays on disk until all shards are there.
        """
        existing = read_manifest(self.path)
        if existing is None:
            return False
        if existing.stages != self.manifest.grown_from:
            self.manifest.require_same(existing, self.path)
            self.manifest = existing
        return True

    def write(self, number: int, content: Content) -> None:
        """Write a shard; ValueError if the manifest lists one with other bits."""
        if not self.join():
            write_manifest(self.path, self.manifest, replace=False)
            self.join()  # of processes that start at once with different settings, all but one fail here
        rows = self.rows(number)
        seeds = torch.tensor(list(self.seeds[rows.start : rows.stop]), dtype=torch.int64)
        tensors = {"seeds": seeds, **content.tensors}
        details = {"number": number, "nfe": content.nfe, "prompts": content.prompts}
        record = seal({"run": self.manifest.plan[number].run, **details}, tensors)
        path = self.shard_path(number)
        listed = (self.manifest.shards or {}).get(path.name)
        if listed is not None and listed["sha256"] != record["sha256"]:
            raise ValueError(
                f"{path} was regenerated with other bits than the manifest lists, as happens with another "
                f"device or torch than the folder's ({_made_with(self.manifest)}); use that one, or delete "
                f"{MANIFEST} and generate the samples again to accept the different rounding."
            )
        try:
            write_shard(path, record, tensors)
        except OSError:
            # Another process with the same shard may have finished it, and removed our partial file.
            if self.damage(number, contents=True) is not None:
                raise

    def finish(self) -> None:
        """Complete the manifest if all shards exist, whichever process wrote them."""
        self.join()
        if self.manifest.complete:
            return
        shards: dict[str, dict[str, Any]] = {}
        nfe = None
        for number in range(self.shards):
            try:
                shard = self.shard(number)
            except ValueError:
                return  # not generated yet
            shards[shard.path.name] = {
                "samples": len(self.rows(number)),
                "bytes": shard.path.stat().st_size,
                "sha256": shard.record["sha256"],
            }
            nfe = shard.record["nfe"]
        self.manifest = replace(self.manifest, shards=shards, nfe=nfe)
        write_manifest(self.path, self.manifest)


def _made_with(manifest: Manifest) -> str:
    return ", ".join(f"{name} {value}" for name, value in manifest.made_with.items() if name != "command")


def fill(
    folder: SampleFolder,
    make: MakeShard,
    *,
    repair: bool = False,
    reporter: Reporter | None = None,
    rank: int | None = None,
    world_size: int | None = None,
) -> None:
    """Generate this process's missing shards with make(rows, advance) -> Content.

    Shard n belongs to process n modulo `world_size`. No process waits for another: the one that finds all
    shards in place completes the manifest. `repair` compares existing shards with their SHA-256, and replaces
    damaged ones. ValueError if the folder holds samples made with other settings or is not writable.
    """
    rank, world_size = process_share(rank, world_size)
    reporter = reporter or SilentReporter()
    folder.join()
    if folder.shards > MOST_SHARDS:
        raise ValueError(
            f"{len(folder.seeds)} samples would be {folder.shards} shards, more than {MOST_SHARDS}; use a "
            "larger shard_size."
        )
    manifest = folder.manifest
    if manifest.grown_from and not manifest.complete:
        before = manifest.grown_from[-1]["samples"]
        reporter.message(f"{folder.path} grows from {before} to {len(folder.seeds)} samples.")
    mine = range(rank, folder.shards, world_size)
    missing = _missing(folder, mine, repair, reporter)
    if len(missing) < len(mine):
        reporter.message(f"{len(mine) - len(missing)} of {len(mine)} shards exist already.")
    if missing:
        check_output_folder(folder.path)
        name = "Teacher samples" + (f", process {rank + 1} of {world_size}" if world_size > 1 else "")
        with reporter.task(name, sum(len(folder.rows(number)) for number in missing)) as advance:
            for number in missing:
                folder.write(number, make(folder.rows(number), advance))
    folder.finish()


def _missing(folder: SampleFolder, numbers: range, repair: bool, reporter: Reporter) -> list[int]:
    """Return the shards that are missing or damaged, and report the damage; foreign shards are an error."""
    missing = []
    for number in numbers:
        damage, path = folder.damage(number, contents=repair), folder.shard_path(number)
        if damage == _FOREIGN:
            raise ValueError(f"{path} {damage}; choose another folder.")
        if damage is not None:
            missing.append(number)
            if damage != "is missing":
                reporter.message(f"{path} {damage}; it is generated again.")
    return missing


def process_share(rank: int | None = None, world_size: int | None = None) -> tuple[int, int]:
    """Return the rank of this process and the number of processes: as given, or as torchrun set them."""
    launch = Launch.read()
    rank = launch.rank if rank is None else rank
    world_size = launch.count if world_size is None else world_size
    if not 0 <= rank < world_size:
        raise ValueError(f"rank is {rank} of {world_size} processes; expected 0 to {world_size - 1}.")
    return rank, world_size


def verify_samples(
    folder: str | os.PathLike[str],
    *,
    reporter: Reporter | None = None,
    rank: int | None = None,
    world_size: int | None = None,
) -> dict[str, str]:
    """Read every shard and compare it with its SHA-256 and with the manifest.

    Parameters
    ----------
    folder : path
        A folder written by `generate_samples`, complete or not.
    reporter : Reporter, optional
        Receives the progress, in shards.
    rank, world_size : int, optional
        This process and their number; each verifies its own shards. Default: RANK and WORLD_SIZE of the
        environment.

    Returns
    -------
    dict
        File name -> damage; empty if the folder is complete and intact.

    Raises
    ------
    ValueError
        If there is no manifest, or it is damaged.
    """
    rank, world_size = process_share(rank, world_size)
    opened = SampleFolder.open(folder)
    mine = range(rank, opened.shards, world_size)
    damaged: dict[str, str] = {}
    with (reporter or SilentReporter()).task("Verifying shards", len(mine)) as advance:
        for number in mine:
            damage = opened.damage(number, contents=True)
            if damage is not None:
                damaged[opened.shard_path(number).name] = damage
            advance()
    if not opened.manifest.complete and not damaged:
        damaged[MANIFEST] = "does not list its shards yet; generate the samples once more"
    return damaged
