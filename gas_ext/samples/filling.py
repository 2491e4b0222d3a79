"""Filling a folder with shards: dealt out by number, checked, made again where needed."""

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
from gas_ext.samples.shard import Shard, seal, write_shard

_FOREIGN = "belongs to samples made with other settings"
_LEFT_OVER = "is left of an attempt to make other samples"
REMEDY = "run what made the samples again, with repair (gas-ext teach ... --repair)"


class Content(NamedTuple):
    """What one shard is made of, besides its seeds."""

    tensors: Mapping[str, Tensor]
    prompts: list[str] | None
    nfe: int | None


MakeShard = Callable[[range, Advance], Content]


class SampleFolder:
    """A folder of samples: what it is to hold, and what is there.

    Which samples stand in which shard follows from the settings alone, never from the number of processes.

    Parameters
    ----------
    path : Path
        The folder; it need not exist.
    manifest : Manifest
        As read, or of samples yet to be made.
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
                f"{path} holds no teacher samples ({MANIFEST} is missing); make them with gas-ext teach."
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
        """Return the places of a shard's samples among all."""
        return self.manifest.plan[number].rows

    def find(self, place: int) -> tuple[int, int]:
        """Return the number of the shard that holds the sample at a place, and its row there."""
        plan = self.manifest.plan
        number = bisect.bisect_right(plan, place, key=lambda shard: shard.rows.start) - 1
        return number, place - plan[number].rows.start

    def shard_path(self, number: int) -> Path:
        """Return the file of a shard."""
        return self.path / shard_name(number)

    def damage(self, number: int, *, contents: bool) -> str | None:
        """Say what is wrong with a shard, or None.

        Parameters
        ----------
        number : int
            Which shard.
        contents : bool
            Also compare its content with its SHA-256, which reads all of it.
        """
        path = self.shard_path(number)
        if not path.is_file():
            return "is missing"
        try:
            shard = Shard(path)
        except ValueError:
            return "is cut off or has a damaged header"
        listed = (self.manifest.shards or {}).get(path.name)
        if contents and not shard.is_intact():
            return "does not match its SHA-256"
        if shard.record["run"] != self.manifest.plan[number].run or shard.record["number"] != number:
            # Nothing else can be beyond the shards of a folder that has been complete.
            return _FOREIGN if listed is not None or not self.manifest.grown_from else _LEFT_OVER
        if listed is not None and shard.record["sha256"] != listed["sha256"]:
            return "is not the one that the manifest lists"
        return None

    def shard(self, number: int) -> Shard:
        """Open a shard; ValueError if it is not the right one. Its tensors are not read."""
        damage = self.damage(number, contents=False)
        if damage is not None:
            raise ValueError(f"{self.shard_path(number)} {damage}; {REMEDY}.")
        shard, settings = Shard(self.shard_path(number)), self.manifest.settings
        shapes = {"samples": settings["sample_shape"], "images": settings["image_shape"]}
        shard.check_content(len(self.rows(number)), shapes)
        return shard

    def join(self) -> bool:
        """Take over the manifest that is there, and say whether one is; ValueError if its settings differ.

        That of a folder which is to grow stays until it has.
        """
        there = read_manifest(self.path)
        if there is None:
            return False
        if there.stages == self.manifest.grown_from:
            return True
        self.manifest.require_same(there, self.path)
        self.manifest = there
        return True

    def write(self, number: int, content: Content) -> None:
        """Put a shard in place; ValueError if the manifest lists one with other bits."""
        if not self.join():
            write_manifest(self.path, self.manifest, replace=False)
            self.join()  # of those that begin at once, with other settings, all but one are refused here
        rows = self.rows(number)
        seeds = torch.tensor(list(self.seeds[rows.start : rows.stop]), dtype=torch.int64)
        tensors = {"seeds": seeds, **content.tensors}
        details = {"number": number, "nfe": content.nfe, "prompts": content.prompts}
        record = seal({"run": self.manifest.plan[number].run, **details}, tensors)
        path = self.shard_path(number)
        listed = (self.manifest.shards or {}).get(path.name)
        if listed is not None and listed["sha256"] != record["sha256"]:
            raise ValueError(
                f"{path} was made again with other bits than the manifest lists, as happens with another "
                f"device or torch than the folder's ({_made_with(self.manifest)}): use that one, or delete "
                f"{MANIFEST} and make the samples again to accept what differs by rounding."
            )
        try:
            write_shard(path, record, tensors)
        except OSError:
            # Another process, given the same work by mistake, may have finished it and cleared the place.
            if self.damage(number, contents=True) is not None:
                raise

    def finish(self) -> None:
        """Complete the manifest if all shards are there, whoever made them."""
        self.join()
        if self.manifest.complete:
            return
        shards: dict[str, dict[str, Any]] = {}
        nfe = None
        for number in range(self.shards):
            try:
                shard = self.shard(number)
            except ValueError:
                return  # it is yet to be made
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
    """Make the shards that this process is to make and that are not there.

    Shard n belongs to process n modulo `world_size`. Nothing is waited for: whichever process finds all
    shards in place completes the manifest.

    Parameters
    ----------
    folder : SampleFolder
        What is to be made.
    make : callable
        make(rows, advance) -> Content of the samples at these places.
    repair : bool
        Also compare the shards that are there with their SHA-256, and replace those that are damaged.
    reporter : Reporter, optional
        Told of the progress, in samples.
    rank, world_size : int, optional
        This process and their number; from the environment if not given (see `place`).

    Raises
    ------
    ValueError
        If the folder holds samples made with other settings, or cannot be written.
    """
    rank, world_size = place(rank, world_size)
    reporter = reporter or SilentReporter()
    folder.join()
    if folder.shards > MOST_SHARDS:
        raise ValueError(
            f"{len(folder.seeds)} samples would be {folder.shards} shards, more than {MOST_SHARDS}; take a "
            "larger shard_size."
        )
    mine = range(rank, folder.shards, world_size)
    manifest = folder.manifest
    if manifest.grown_from and not manifest.complete:
        before = manifest.grown_from[-1]["samples"]
        reporter.message(f"{folder.path} grows from {before} to {len(folder.seeds)} samples.")
    wanted = []
    for number in mine:
        damage = folder.damage(number, contents=repair)
        if damage == _FOREIGN:
            raise ValueError(f"{folder.shard_path(number)} {damage}: choose another folder.")
        if damage is not None:
            wanted.append(number)
            if damage != "is missing":
                reporter.message(f"{folder.shard_path(number)} {damage}: it is made again.")
    if len(wanted) < len(mine):
        reporter.message(f"{len(mine) - len(wanted)} of {len(mine)} shards are there already.")
    if wanted:
        check_output_folder(folder.path)
        name = "Teacher samples" + (f", process {rank + 1} of {world_size}" if world_size > 1 else "")
        with reporter.task(name, sum(len(folder.rows(number)) for number in wanted)) as advance:
            for number in wanted:
                folder.write(number, make(folder.rows(number), advance))
    folder.finish()


def place(rank: int | None = None, world_size: int | None = None) -> tuple[int, int]:
    """Return which process this is, and of how many: as given, else as torchrun says.

    Examples
    --------
    >>> place(1, 4)
    (1, 4)
    """
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
        What `generate_samples` wrote, complete or not.
    reporter : Reporter, optional
        Told of the progress, in shards.
    rank, world_size : int, optional
        As for `fill`; each process reads its own shards.

    Returns
    -------
    dict
        File name -> what is wrong with it; empty if the folder is complete and intact.

    Raises
    ------
    ValueError
        If there is no manifest, or it is damaged.
    """
    rank, world_size = place(rank, world_size)
    opened = SampleFolder.open(folder)
    mine = range(rank, opened.shards, world_size)
    found: dict[str, str] = {}
    with (reporter or SilentReporter()).task("Verifying shards", len(mine)) as advance:
        for number in mine:
            damage = opened.damage(number, contents=True)
            if damage is not None:
                found[opened.shard_path(number).name] = damage
            advance()
    if not opened.manifest.complete and not found:
        found[MANIFEST] = "does not list its shards yet: run what made the samples once more"
    return found
