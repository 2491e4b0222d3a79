"""The plots of docs/performance.md, on logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from results import Results, Row

from gas_ext._utils.figures import GRID_COLOR, MUTED_COLOR, new_figure, save_figure

# The palette of Okabe and Ito; each line also has its own marker.
OURS = ("gas_ext", "#0072B2", "o")
PEERS = {
    "unfused": ("unfused", "#D55E00", "s"),
    "public code": ("public code", "#D55E00", "s"),
    "torch.compile": ("torch.compile", "#009E73", "^"),
    "floor": ("floor", "#404040", "x"),
}
TERMS_COLORS = {2: ("#56B4E9", "v"), 3: ("#009E73", "^"), 8: ("#0072B2", "o"), 20: ("#CC79A7", "D")}
AXES = ("steps", "order", "batch", "image size", "steps of training")


def write_plots(results: Results, folder: Path) -> list[Path]:
    """Draw every plot for which the run has rows."""
    written = []
    for name, draw in (("update", update), ("floor", floor), ("scaling", scaling)):
        path = folder / f"performance-{name}.png"
        if draw(results, path):
            written.append(path)
    return written


def update(results: Results, path: Path) -> bool:
    """Time of the update against the bytes it must move, forward and backward, with peers."""
    panels = []
    for terms in (3, 8, 20):
        rows = results.of("forward", terms=terms, dtype="float32")
        floors = results.of("forward against the floor", terms=terms, dtype="float32")
        panels.append((f"forward, {terms} terms", rows, floors))
    for terms in (8, 20):
        rows = results.of("backward", terms=terms, dtype="float32", gradients="all")
        panels.append((f"backward, {terms} terms", rows, rows))
    panels = [panel for panel in panels if panel[1]]
    if not panels:
        return False
    figure, axes = _row_of_axes(len(panels), 3.2, sharey=True)
    for axis, (title, rows, floors) in zip(axes, panels, strict=True):
        for peer in ("unfused", "torch.compile"):
            _line(
                axis,
                [(_bytes(row), row.peers[peer].median) for row in rows if peer in row.peers],
                *PEERS[peer],
            )
        _line(axis, [(_bytes(row), row.median) for row in rows], *OURS)
        _line(axis, _nearest_floors(floors), *PEERS["floor"], dashed=True)
        _decorate(axis, title, "bytes to move")
    _finish(figure, axes, "seconds", path)
    return True


def _bytes(row: Row) -> float:
    """Bytes that an update must move; forward rows have only their terms."""
    if "bytes" in row.case:
        return float(row.case["bytes"])
    itemsize = {"float32": 4, "bfloat16": 2}[row.case["dtype"]]
    return (row.case["terms"] + 2) * math.prod(row.case["size"]) * itemsize


def _nearest_floors(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """The warm floor of each size, or the cold one if there is no warm one."""
    found: dict[float, float] = {}
    for row in sorted(rows, key=lambda row: row.case.get("cache") == "warm"):
        if "floor" in row.peers:
            found[_bytes(row)] = row.peers["floor"].median
    return list(found.items())


def floor(results: Results, path: Path) -> bool:
    """Share of the floor that the forward update into given memory reaches, warm and cold."""
    rows = [row for row in results.of("forward against the floor") if "floor" in row.peers]
    panels = [
        (dtype, cache, [row for row in rows if (row.case["dtype"], row.case["cache"]) == (dtype, cache)])
        for dtype in ("float32", "bfloat16")
        for cache in ("warm", "cold")
    ]
    panels = [panel for panel in panels if panel[2]]
    if not panels:
        return False
    figure, axes = _row_of_axes(len(panels), 3.4, sharey=True)
    for axis, (dtype, cache, chosen) in zip(axes, panels, strict=True):
        for terms, (color, mark) in TERMS_COLORS.items():
            points = [(_bytes(row), row.speedup("floor")) for row in chosen if row.case["terms"] == terms]
            _line(axis, points, f"{terms} terms", color, mark)
        axis.axvline(results.machine["last_level_cache"], color=MUTED_COLOR, linewidth=0.8, linestyle=":")
        axis.axhline(1.0, color=MUTED_COLOR, linewidth=0.8)
        _decorate(axis, f"{dtype}, {cache}", "bytes to move (dotted: the cache)")
        axis.set_yscale("linear")
        axis.set_ylim(0, 1.2)
    _finish(figure, axes, "share of the floor", path)
    return True


def scaling(results: Results, path: Path) -> bool:
    """Cost of a whole sample against steps, order, batch and image size, and of a training solve."""
    panels = [(axis, results.of("scaling", axis=axis)) for axis in AXES]
    panels = [(axis, sorted(rows, key=lambda row: row.case["value"])) for axis, rows in panels if rows]
    if not panels:
        return False
    figure, axes = _row_of_axes(len(panels), 3.2)
    for axis, (name, rows) in zip(axes, panels, strict=True):
        for peer in ("public code", "floor"):
            points = [(row.case["value"], row.peers[peer].median) for row in rows if peer in row.peers]
            _line(axis, points, *PEERS[peer], dashed=peer == "floor")
        _line(axis, [(row.case["value"], row.median) for row in rows], *OURS)
        _decorate(axis, "", name)
        axis.set_xscale("log", base=2)
    _finish(figure, axes, "seconds of a whole solve", path)
    return True


def _row_of_axes(count: int, width: float, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    figure = new_figure(width * count, 3.4)
    return figure, list(figure.subplots(1, count, sharey=sharey, squeeze=False)[0])


def _finish(figure: Figure, axes: list[Axes], ylabel: str, path: Path) -> None:
    axes[0].set_ylabel(ylabel)
    axes[0].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    save_figure(figure, path)


def _line(
    axis: Axes, points: list[tuple[float, float]], label: str, color: str, mark: str, dashed: bool = False
) -> None:
    if points:
        x, y = zip(*sorted(points), strict=True)
        style = "--" if dashed else "-"
        axis.plot(x, y, style, marker=mark, color=color, label=label, linewidth=1.4, markersize=4)


def _decorate(axis: Axes, title: str, xlabel: str) -> None:
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(xlabel, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(color=GRID_COLOR, linewidth=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
