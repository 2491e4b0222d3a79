"""The folder of a run: what is in it, whose it is, and whether a run in it can be resumed."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gas_ext._utils.files import check_output_folder, remove_leftovers, write_file
from gas_ext.configs import Config, config_text
from gas_ext.configs.base import LossKind, read_yaml
from gas_ext.training.checkpoints import Checkpoint, check_state, newest_checkpoint, remove_newer

CONFIG = "config.yaml"
START = "start.safetensors"
BEST = "solver.safetensors"
LAST = "last.safetensors"
CHECKPOINTS = "checkpoints"
IMAGES = "images"
LOG = "log.jsonl"
TENSORBOARD = "tensorboard"
WANDB_ID = "wandb-id.txt"
LOCK = ".lock"
HOLDER = ".lock-holder"  # not in the lock's own file, which a process that tries it may empty

# Everything a run writes, but config.yaml, by which its folder is known.
_FILES = (
    f"{CHECKPOINTS}/iteration-*.safetensors",
    START,
    BEST,
    LAST,
    LOG,
    WANDB_ID,
    f"{IMAGES}/teacher.png",
    f"{IMAGES}/grid-*.png",
    f"{IMAGES}/solver-*.png",
    f"{TENSORBOARD}/events.out.tfevents.*",
)

# Settings that change how a run computes but not, up to rounding, what; it may be resumed with others.
_FREE = ("training.accumulation", "training.recompute", "training.checkpoint_every", "training.shown_images")
# Names and places; what is there is compared instead. Evaluation is no part of a run.
_PLACES = ("title", "teacher", "student.steps", "seeds.evaluation", "run.teacher", "run.samples")
_OF_THE_OTHER_LOSS = {
    "gs": ("training.iterations.gas", "training.train_samples.gas", "adversarial"),
    "gas": ("training.iterations.gs", "training.train_samples.gs"),
}

# Settings that were added later, and what earlier runs did.
_RENAMED = {"student.kind": "student.preset"}
_LATER = {"student.preset": "gs", "adversarial.noise_levels": [], "training.scale_rates": False}


def described(config: Config, loss: LossKind) -> dict[str, Any]:
    """Return what a run with this loss depends on, as plain values by dotted names.

    Examples
    --------
    >>> from gas_ext.configs import load_config
    >>> described(load_config("demo"), "gs")["training.batch_size"]
    8
    """
    left_out = (*_FREE, *_PLACES, *_OF_THE_OTHER_LOSS[loss])
    values = _flat(config.model_dump(mode="json"))
    return {
        name: value
        for name, value in values.items()
        if not any(name == place or name.startswith(f"{place}.") for place in left_out)
    }


def _only_longer(name: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Whether a setting asks for more iterations than before, at rates that do not depend on their number."""
    schedules = {there.get("training.schedule"), here.get("training.schedule")}
    if not name.startswith("training.iterations.") or schedules != {"constant"}:
        return False
    return bool(here.get(name, 0) > there.get(name, 0))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


class RunFolder:
    """A folder that holds a run, or is to hold one.

    Parameters
    ----------
    path : Path
        It need not exist.

    Raises
    ------
    ValueError
        If the folder cannot be written, or files in it that no run wrote would be overwritten.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        check_output_folder(path)
        foreign = [name for name in (CONFIG, START, BEST, LAST) if (path / name).exists()]
        if foreign and not self._is_run():
            raise ValueError(
                f"{path / foreign[0]} exists, but {path} is not the folder of a run; choose another one "
                "with -o."
            )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the folder for this process; the operating system frees it if the process is killed.

        Where the file system has no locks, a warning says so. A folder made here goes again if nothing else
        came into it.

        Raises
        ------
        ValueError
            If another process holds it.
        """
        is_new = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        lock, holder = FileLock(self.path / LOCK, timeout=0), self.path / HOLDER
        try:
            lock.acquire()
        except Timeout:
            name = holder.read_text(encoding="utf-8") if holder.exists() else "another process"
            raise ValueError(
                f"{self.path} is in use by {name}: wait until that ends, or choose another folder with -o."
            ) from None
        except (OSError, NotImplementedError) as error:
            warnings.warn(
                f"{self.path} could not be locked ({error}): do not train in it with another process.",
                stacklevel=3,
            )
        try:
            write_file(holder, f"process {os.getpid()} on {platform.node()}".encode())
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()
            with suppress(OSError):
                if is_new and {path.name for path in self.path.iterdir()} <= {LOCK}:
                    (self.path / LOCK).unlink(missing_ok=True)
                    self.path.rmdir()

    def find(
        self, settings: Mapping[str, Any], tell: Callable[[str], object] = lambda line: None
    ) -> Checkpoint | None:
        """Return the newest intact checkpoint; None if there is no run, or one that never saved anything.

        Parameters
        ----------
        settings : mapping
            What the run to be made depends on; without "samples", those are not compared.
        tell : callable
            Told about damaged checkpoints.

        Raises
        ------
        ValueError
            If the checkpoint is of a run with other settings, or no checkpoint is intact.
        """
        checkpoint = newest_checkpoint(self.path / CHECKPOINTS, tell, check_state)
        if checkpoint is not None:
            self._require_same(checkpoint.state["settings"], settings)
        return checkpoint

    def _is_run(self) -> bool:
        """Whether config.yaml is one that `begin` wrote."""
        try:
            values = read_yaml((self.path / CONFIG).read_text(encoding="utf-8"), CONFIG)
        except (OSError, ValueError):
            return False
        return isinstance(values, dict) and isinstance(values.get("run"), dict)

    def _require_same(self, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
        there = {_RENAMED.get(name, name): value for name, value in there.items()}
        there = {**{name: value for name, value in _LATER.items() if name in here}, **there}
        names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
        names = [name for name in names if name != "samples" or name in here]
        names = [name for name in names if not _only_longer(name, there, here)]
        if not names:
            return
        shown = ", ".join(f"{name} {there.get(name)!r}, not {here.get(name)!r}" for name in names[:3])
        more = f", and {len(names) - 3} more" if len(names) > 3 else ""
        raise ValueError(
            f"The run in {self.path} has {shown}{more}: resume it with its own settings, choose another "
            "folder with -o, or start over with --no-resume."
        )

    def begin(self, config: Config, checkpoint: Checkpoint | None) -> None:
        """Write config.yaml, and remove what does not belong to the run from here on.

        Parameters
        ----------
        config : Config
            The resolved config.
        checkpoint : Checkpoint or None
            Where the run resumes; without, everything of an earlier run is removed.
        """
        if checkpoint is None and self._is_run():
            for pattern in _FILES:
                for path in self.path.glob(pattern):
                    path.unlink()
        self._remove_unfinished()
        remove_newer(self.path / CHECKPOINTS, -1 if checkpoint is None else checkpoint.iteration)
        write_file(self.path / CONFIG, config_text(config).encode())

    def _remove_unfinished(self) -> None:
        """Remove what a killed process was writing; see `gas_ext._utils.files`."""
        for name in (CONFIG, START, BEST, LAST, LOG, HOLDER):
            remove_leftovers(self.path / name)
        for path in (self.path / IMAGES).glob(".*.partial.png"):
            path.unlink()
