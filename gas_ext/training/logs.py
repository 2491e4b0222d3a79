"""The logs of a run: log.jsonl always, TensorBoard if it is installed, wandb on request."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gas_ext._utils.distances import finite_or_none
from gas_ext._utils.files import name_file, write_file
from gas_ext._utils.optional import require
from gas_ext.training.folder import LOG, TENSORBOARD, WANDB_ID


class JsonLines:
    """One JSON object per line; numbers that are not finite are null.

    A run that resumes after `iteration` iterations (-1 for a new run) first removes lines of later ones, and
    one that a killed process left unfinished.
    """

    def __init__(self, path: Path, iteration: int = -1) -> None:
        earlier = [record for record in _records(path) if record["iteration"] <= iteration]
        write_file(path, "".join(json.dumps(record) + "\n" for record in earlier).encode())
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115

    def write(self, kind: str, iteration: int, numbers: Mapping[str, float]) -> None:
        """Append a line."""
        record = {"kind": kind, "iteration": iteration}
        values = {name: finite_or_none(value) for name, value in numbers.items()}
        try:
            self._file.write(json.dumps({**record, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            name_file(error, Path(self._file.name))
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_log(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read log.jsonl: one dict per line, with "kind" ("train" or "validation") and "iteration".

    Parameters
    ----------
    path : path
        The file, or the folder of the run.
    """
    path = Path(path)
    return _records(path / LOG if path.is_dir() else path)


def _records(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log, without an unfinished last line of a killed process."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and type(record.get("iteration")) is int:
            records.append(record)
    return records


class TensorBoard:
    """TensorBoard's event files; what a killed process wrote about later iterations is hidden."""

    def __init__(self, folder: Path, iteration: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=iteration + 1)

    def write(self, kind: str, iteration: int, numbers: Mapping[str, float]) -> None:
        """Add one scalar per number."""
        for name, value in numbers.items():
            self._writer.add_scalar(f"{kind}/{name}", value, iteration)
        if kind != "train":
            self._writer.flush()

    def close(self) -> None:
        """Close the writer."""
        self._writer.close()


class Wandb:
    """A run on Weights & Biases, whose id is stored in the folder so that it can be resumed."""

    def __init__(self, project: str, folder: Path, settings: Mapping[str, Any]) -> None:
        wandb = require("wandb", "wandb")
        path = folder / WANDB_ID
        if not path.is_file():
            write_file(path, f"{secrets.token_hex(8)}\n".encode())
        self._run: Any = wandb.init(
            project=project,
            name=folder.name,
            dir=str(folder),
            id=path.read_text().strip(),
            resume="allow",
            config=dict(settings),
        )

    def write(self, kind: str, iteration: int, numbers: Mapping[str, float]) -> None:
        """Log the numbers of an iteration."""
        self._run.log({f"{kind}/{name}": value for name, value in numbers.items()}, step=iteration)

    def close(self) -> None:
        """End the run."""
        self._run.finish()


class Logs:
    """Several logs as one.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     logs = Logs([JsonLines(Path(folder) / "log.jsonl")])
    ...     logs.write("train", 1, {"loss": 0.5})
    ...     logs.close()
    ...     read_log(folder)
    [{'kind': 'train', 'iteration': 1, 'loss': 0.5}]
    """

    def __init__(self, logs: Sequence[JsonLines | TensorBoard | Wandb] = ()) -> None:
        self._logs = list(logs)

    def write(self, kind: str, iteration: int, numbers: Mapping[str, float]) -> None:
        """Write the numbers of an iteration to each log; their kind is "train" or "validation"."""
        for log in self._logs:
            log.write(kind, iteration, numbers)

    def close(self) -> None:
        """Close each log."""
        for log in self._logs:
            log.close()


def open_logs(folder: Path, iteration: int, settings: Mapping[str, Any], wandb: str | None = None) -> Logs:
    """Open the logs of a run that has made `iteration` iterations, or -1 if it is new."""
    logs: list[JsonLines | TensorBoard | Wandb] = [JsonLines(folder / LOG, iteration)]
    with suppress(ImportError):  # TensorBoard is optional
        logs.append(TensorBoard(folder / TENSORBOARD, iteration))
    if wandb is not None:
        logs.append(Wandb(wandb, folder, settings))
    return Logs(logs)
