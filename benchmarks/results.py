"""The output of pytest-benchmark (--benchmark-json), as rows with their peers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Peer:
    """A peer of a row, in seconds; `drift` is the change between the measurements before and after."""

    median: float
    iqr: float
    drift: float


@dataclass(frozen=True)
class Row:
    """One benchmark, in seconds of one piece of work."""

    name: str
    subject: str
    case: dict[str, Any]
    median: float
    iqr: float
    peers: dict[str, Peer]
    extra: dict[str, Any]

    def speedup(self, peer: str) -> float:
        """The peer's median over this row's: above 1, this row is faster; of the floor, the share reached."""
        return self.peers[peer].median / self.median

    @property
    def noise(self) -> float:
        """Relative spread of the row."""
        return self.iqr / self.median

    @property
    def label(self) -> str:
        """The case in words."""
        return ", ".join(words(name, value) for name, value in self.case.items() if name not in HIDDEN)


HIDDEN = ("bytes", "axis", "value")


@dataclass(frozen=True)
class Results:
    """All rows of one run, with its machine and date."""

    rows: list[Row]
    machine: dict[str, Any]
    when: str

    def of(self, subject: str, **case: Any) -> list[Row]:
        """Rows of a subject whose case has these values."""
        return [
            row
            for row in self.rows
            if row.subject == subject and all(row.case.get(name) == value for name, value in case.items())
        ]


def words(name: str, value: Any) -> str:
    """A value of a case in words."""
    if isinstance(value, list):
        return "(" + ", ".join(map(str, value)) + ")"
    if isinstance(value, str):
        return value
    return f"{value} {name}" if name.endswith("s") else f"{name} {value}"


def read_results(path: Path) -> Results:
    """Read one file; ValueError if it is not a run of these benchmarks."""
    found = json.loads(path.read_text("utf-8"))
    if not isinstance(found, dict) or "benchmarks" not in found:
        raise ValueError(
            f"{path} holds no benchmarks; make it with pytest benchmarks/ --benchmark-json={path}."
        )
    rows = [_row(entry) for entry in found["benchmarks"] if "subject" in entry["extra_info"]]
    if not rows:
        raise ValueError(f"{path} holds no row of these benchmarks; run pytest benchmarks/ --benchmark-only.")
    return Results(rows, found["machine_info"], found["datetime"])


def _row(entry: dict[str, Any]) -> Row:
    extra = dict(entry["extra_info"])
    subject, case, per = extra.pop("subject"), extra.pop("case"), extra.pop("per")
    peers = {
        name: Peer(peer["median"], peer["iqr"], peer["drift"])
        for name, peer in extra.pop("peers", {}).items()
    }
    stats = entry["stats"]
    return Row(entry["fullname"], subject, case, stats["median"] / per, stats["iqr"] / per, peers, extra)
