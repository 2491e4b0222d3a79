"""The folder of a run: its files, its lock, and whether the run in it can be resumed."""

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
from gas_ext.configs import RENAMED, Config, config_text
from gas_ext.configs.base import LossKind, read_yaml
from gas_ext.training.checkpoints import Checkpoint, newest_checkpoint, remove_newer

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

# Everything a run writes except config.yaml, which identifies the folder of a run.
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

# Settings that change a result by rounding at most; a run may be resumed with other values.
_FREE = ("training.accumulation", "training.recompute", "training.checkpoint_every", "training.shown_images")
# Names and paths, whose content is compared instead; and evaluation, which is not part of a run.
_NAMES = ("title", "teacher", "student.steps", "seeds.evaluation", "run.teacher", "run.samples")
_OF_THE_OTHER_LOSS = {
    "gs": ("training.iterations.gas", "training.train_samples.gas", "adversarial"),
    "gas": ("training.iterations.gs", "training.train_samples.gs"),
}

# Settings that were renamed or added later, and their values in earlier runs.
_LATER = {"student.preset": "gs", "adversarial.noise_levels": [], "training.scale_rates": False}


def described(config: Config, loss: LossKind) -> dict[str, Any]:
    """Return the settings that a run with this loss depends on, by dotted names.

    Examples
    --------
    >>> from gas_ext.configs import load_config
    >>> described(load_config("demo"), "gs")["training.batch_size"]
    8
    """
    left_out = (*_FREE, *_NAMES, *_OF_THE_OTHER_LOSS[loss])
    values = _flat(config.model_dump(mode="json"))
    return {
        name: value
        for name, value in values.items()
        if not any(name == other or name.startswith(f"{other}.") for other in left_out)
    }


def _only_longer(name: str, saved: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a setting is a larger number of iterations, at rates that do not depend on their number."""
    schedules = {saved.get("training.schedule"), new.get("training.schedule")}
    if not name.startswith("training.iterations.") or schedules != {"constant"}:
        return False
    return bool(new.get(name, 0) > saved.get(name, 0))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


class RunFolder:
    """A folder for a run, which need not exist.

    ValueError if it is not writable, or has files of the same names that are not from a run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        check_output_folder(path)
        foreign = [name for name in (CONFIG, START, BEST, LAST) if (path / name).exists()]
        if foreign and not self._is_run():
            raise ValueError(
                f"{path / foreign[0]} exists, but {path} is not the folder of a run; choose another folder "
                "with -o."
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Reserve the folder for this process; ValueError if another process uses it.

        The operating system releases the lock of a killed process. Without locks in the file system, warn. A
        folder created here is removed again if it stays empty.
        """
        is_new = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        lock, holder = FileLock(self.path / LOCK, timeout=0), self.path / HOLDER
        try:
            lock.acquire()
        except Timeout:
            name = holder.read_text(encoding="utf-8") if holder.exists() else "another process"
            raise ValueError(
                f"{self.path} is in use by {name}; wait until that ends, or choose another folder with -o."
            ) from None
        except (OSError, NotImplementedError) as error:
            warnings.warn(
                f"{self.path} could not be locked ({error}); do not train in it with another process.",
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
        self, settings: Mapping[str, Any], report: Callable[[str], object] = lambda line: None
    ) -> Checkpoint | None:
        """Return the newest valid checkpoint; None if there is none.

        ValueError if it is of a run with other settings ("samples" are compared only if given), or if no
        checkpoint is valid.
        """
        checkpoint = newest_checkpoint(self.path / CHECKPOINTS, report)
        if checkpoint is not None:
            self._require_same(checkpoint.state["settings"], settings)
        return checkpoint

    def _is_run(self) -> bool:
        """Whether config.yaml was written by `begin`."""
        try:
            values = read_yaml((self.path / CONFIG).read_text(encoding="utf-8"), CONFIG)
        except (OSError, ValueError):
            return False
        return isinstance(values, dict) and isinstance(values.get("run"), dict)

    def _require_same(self, saved: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        saved = {RENAMED.get(name, name): value for name, value in saved.items()}
        saved = {**{name: value for name, value in _LATER.items() if name in new}, **saved}
        names = [
            name
            for name in {**saved, **new}
            if saved.get(name) != new.get(name)
            and (name != "samples" or name in new)
            and not _only_longer(name, saved, new)
        ]
        if not names:
            return
        shown = ", ".join(f"{name} {saved.get(name)!r}, not {new.get(name)!r}" for name in names[:3])
        more = f", and {len(names) - 3} more" if len(names) > 3 else ""
        raise ValueError(
            f"The run in {self.path} has {shown}{more}; resume it with its own settings, choose another "
            "folder with -o, or start over with --no-resume."
        )

    def begin(self, config: Config, checkpoint: Checkpoint | None) -> None:
        """Write config.yaml, and remove what earlier runs wrote after the checkpoint (all without one)."""
        if checkpoint is None and self._is_run():
            for pattern in _FILES:
                for path in self.path.glob(pattern):
                    path.unlink()
        # What a killed process was writing, see `gas_ext._utils.files`.
        for name in (CONFIG, START, BEST, LAST, LOG, HOLDER):
            remove_leftovers(self.path / name)
        for path in (self.path / IMAGES).glob(".*.partial.png"):
            path.unlink()
        remove_newer(self.path / CHECKPOINTS, -1 if checkpoint is None else checkpoint.iteration)
        write_file(self.path / CONFIG, config_text(config).encode())
