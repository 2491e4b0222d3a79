"""Pictures of what a solver does: samples side by side, and its numbers beside the classical ones.

Colors are from the set of Okabe and Ito, which people with any common color vision can tell apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gas_ext.data import image_grid, to_uint8
from gas_ext.evaluation import Row
from gas_ext.files import partial_file
from gas_ext.solver import GeneralizedSolver

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLASSICAL_COLOR = "#E69F00"  # orange
LEARNED_COLOR = "#0072B2"  # blue
TEACHER_COLOR = "#404040"
_COLORS = {"teacher": TEACHER_COLOR, "classical": CLASSICAL_COLOR, "learned": LEARNED_COLOR}
GRID_COLOR = "#D9D9D9"
MUTED_COLOR = "#595959"


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of the given size in inches, outside of pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write the figure as PNG, atomically."""
    with partial_file(Path(path)) as partial:
        figure.savefig(partial, format="png")


@dataclass(frozen=True)
class Strip:
    """Samples of one solver, ``(columns, C, H, W)`` in [-1, 1], and its row of the table."""

    row: Row
    images: Tensor


def plot_samples(strips: Sequence[Strip], path: str | Path, *, title: str = "", columns: int = 10) -> None:
    """Draw samples of several solvers side by side; the images of one column share their seed.

    Below the samples of every solver but the first stands their signed difference to the first solver's.

    Parameters
    ----------
    strips : sequence of Strip
        One per solver, the teacher first, all with the same number of images, from the same seeds.
    path : str or Path
        The PNG file.
    title : str
        Heading.
    columns : int
        Images per row; more images continue in further blocks of rows below.
    """
    count = len(strips[0].images)
    if any(len(strip.images) != count for strip in strips):
        raise ValueError(
            f"strips hold {[len(s.images) for s in strips]} images; expected the same seeds in each"
        )
    columns = min(columns, count)
    blocks = -(-count // columns)
    cell, label, gap, top = 0.64, 2.95, 0.22, 0.92  # inches
    lines = 2 * len(strips) - 1
    width = max(label + columns * cell + 0.2, 7.2)
    height = top + blocks * (lines * cell + gap)
    figure = new_figure(width, height)
    figure.text(0.2 / width, 1 - 0.18 / height, title, fontsize=13, fontweight="bold", va="top")
    note = (
        "Each column starts from the same noise.  L1: mean absolute difference to the teacher's sample.\n"
        "Difference: blue darker, red brighter than the teacher; full color at a quarter of the range."
    )
    figure.text(
        0.2 / width, 1 - 0.46 / height, note, fontsize=8, color=MUTED_COLOR, va="top", linespacing=1.35
    )
    for block in range(blocks):
        part = slice(block * columns, (block + 1) * columns)
        bottom = height - top - block * (lines * cell + gap)
        for strip in strips:
            bottom -= cell
            _draw_images(figure, strip.images[part], bottom, cell, label)
            _draw_caption(figure, strip.row, bottom, cell, 1 if strip is strips[0] else 2)
            if strip is not strips[0]:
                bottom -= cell
                _draw_images(
                    figure, strip.images[part] - strips[0].images[part], bottom, cell, label, signed=True
                )
                y = (bottom + 0.48 * cell) / height
                figure.text(
                    0.28 / width, y, "difference to the teacher", fontsize=8.5, color=MUTED_COLOR, va="center"
                )
    save_figure(figure, path)


def _draw_images(
    figure: Figure, images: Tensor, bottom: float, cell: float, label: float, signed: bool = False
) -> None:
    """Draw a row of images `bottom` inches up; signed ones as their channels' mean in blue and red."""
    width, height = figure.get_size_inches()
    images = images.detach().float().cpu()
    if signed:
        images = images.mean(dim=1, keepdim=True)
    # A white line of one pixel between images; differences are white where they are 0.
    row = image_grid(images, len(images), padding=1, background=0.0 if signed else 1.0)
    axes = figure.add_axes((label / width, bottom / height, len(images) * cell / width, cell / height))
    if signed:
        axes.imshow(
            row[0].numpy(), cmap="RdBu_r", vmin=-0.5, vmax=0.5, interpolation="nearest", aspect="auto"
        )
    elif len(row) == 1:
        axes.imshow(
            to_uint8(row[0]).numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto"
        )
    else:
        axes.imshow(to_uint8(row).permute(1, 2, 0).numpy(), interpolation="nearest", aspect="auto")
    axes.set_axis_off()


def _draw_caption(figure: Figure, row: Row, bottom: float, cell: float, lines: int) -> None:
    """Write name, evaluations and distances of a solver beside its row, with a bar beside all its `lines`."""
    width, height = figure.get_size_inches()
    color = _COLORS.get(row.solver, TEACHER_COLOR)
    low = bottom - (lines - 1) * cell
    figure.add_artist(
        _bar(0.14 / width, (low + 0.03) / height, 0.05 / width, (lines * cell - 0.08) / height, color)
    )
    middle = (bottom + 0.48 * cell) / height
    plural = "" if row.nfe == 1 else "s"
    for shift, text, style in (
        (
            0.16,
            f"{row.solver.capitalize()}, {row.nfe} evaluation{plural}",
            {"fontsize": 10, "fontweight": "bold"},
        ),
        (-0.01, row.description, {"fontsize": 7.5, "color": MUTED_COLOR}),
        (-0.17, _distances(row), {"fontsize": 8.5}),
    ):
        figure.text(0.28 / width, middle + shift / height, text, va="center", **style)


def _bar(x: float, y: float, width: float, height: float, color: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), width, height, color=color, linewidth=0)


def _distances(row: Row) -> str:
    """Caption text: distances of a row."""
    text = "the reference" if row.solver == "teacher" else f"L1 {row.l1_to_teacher:.4f}"
    if row.frechet_to_teacher is not None:
        text += f"   Frechet to teacher {row.frechet_to_teacher:.4f}"
    return text


def plot_solver(
    learned: GeneralizedSolver,
    classical: GeneralizedSolver,
    path: str | Path,
    *,
    classical_name: str = "classical",
    role: str = "classical",
    title: str = "",
) -> None:
    """Draw the learned times and step weights against those of a classical solver, or of another start.

    Parameters
    ----------
    learned, classical : GeneralizedSolver
        Two solvers of one schedule and number of steps.
    path : str or Path
        The PNG file.
    classical_name : str
        Name of the classical solver, in full.
    role : str
        What it is called in the legend: "classical", "start".
    title : str
        Heading.
    """
    if learned.steps != classical.steps:
        raise ValueError(
            f"solvers have {learned.steps} and {classical.steps} steps; expected the same number"
        )
    steps = learned.steps
    columns = min(steps, 4)
    rows = -(-steps // columns)
    width, times_height, weights_height = max(2.6 * columns, 8.0), 1.75, 2.15
    height = 1.0 + times_height + 0.7 + rows * (weights_height + 0.55) + 0.15
    figure = new_figure(width, height)
    figure.text(0.25 / width, 1 - 0.2 / height, title, fontsize=13, fontweight="bold", va="top")
    axes = figure.add_axes(
        (
            1.35 / width,
            1 - (0.75 + times_height) / height,
            (width - 1.65) / width,
            (times_height - 0.15) / height,
        )
    )
    _draw_times(axes, learned, classical, classical_name, role)
    every = [
        weight for solver in (learned, classical) for n in range(steps) for weight in _step_weights(solver, n)
    ]
    span = max(every) - min(every)
    limits = (min(*every, 0.0) - 0.06 * span, max(every) + 0.06 * span)
    cell = (width - 0.75) / columns
    for n in range(steps):
        left = 0.65 + (n % columns) * cell
        bottom = height - (0.75 + times_height + 0.9) - (n // columns + 1) * (weights_height + 0.55) + 0.55
        axes = figure.add_axes((left / width, bottom / height, (cell - 0.3) / width, weights_height / height))
        _draw_weights(axes, n, learned, classical, role, limits, first=n % columns == 0)
    save_figure(figure, path)


@torch.no_grad()
def _draw_times(
    axes: Axes, learned: GeneralizedSolver, classical: GeneralizedSolver, classical_name: str, role: str
) -> None:
    """Draw times on a log-SNR axis: one line per solver, and where the learned one evaluates the network."""
    schedule = learned.schedule

    def log_snr(times: Tensor) -> list[float]:
        values: list[float] = schedule.lambda_(times).cpu().tolist()
        return values

    lines = [
        (2, role, log_snr(classical.timesteps()), CLASSICAL_COLOR, "s", CLASSICAL_COLOR),
        (1, "learned", log_snr(learned.timesteps()), LEARNED_COLOR, "o", LEARNED_COLOR),
        (0, "learned,\nnetwork at", log_snr(learned.evaluation_timesteps()), LEARNED_COLOR, "^", "white"),
    ]
    for height, name, places, color, marker, face in lines:
        above = name == role
        axes.axhline(height, color=GRID_COLOR, linewidth=1, zorder=0)
        axes.plot(places, [height] * len(places), marker, color=color, markerfacecolor=face, markersize=8)
        for n, place in enumerate(places):
            axes.annotate(
                str(n),
                (place, height),
                (0, 8 if above else -8),
                textcoords="offset points",
                ha="center",
                va="bottom" if above else "top",
                fontsize=8,
                color=MUTED_COLOR,
            )
    for a, b in zip(lines[0][2], lines[1][2], strict=True):
        axes.plot([a, b], [1.85, 1.15], color=GRID_COLOR, linewidth=1, zorder=0)
    axes.set_yticks([height for height, *_ in lines], [name for _, name, *_ in lines], fontsize=9)
    axes.set_ylim(-0.75, 2.5)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel(
        r"$\lambda = \log(\alpha / \sigma)$      noise  $\leftarrow$   $\rightarrow$  image", fontsize=9
    )
    axes.set_title(f"Times of the states.  {role.capitalize()}: {classical_name}", fontsize=10, loc="left")
    clear_frame(axes)


@torch.no_grad()
def _draw_weights(
    axes: Axes,
    n: int,
    learned: GeneralizedSolver,
    classical: GeneralizedSolver,
    role: str,
    limits: tuple[float, float],
    first: bool,
) -> None:
    """Draw the weights of one update as pairs of bars: states x_n, x_{n-1}, ..., then predictions D_n, ..."""
    names = [f"$x_{{{n - i}}}$" for i in range(n + 1)] + [f"$D_{{{n - i}}}$" for i in range(n + 1)]
    places = [float(i) + (0.6 if i > n else 0.0) for i in range(len(names))]
    for solver, shift, color, name in (
        (classical, -0.2, CLASSICAL_COLOR, role),
        (learned, 0.2, LEARNED_COLOR, "learned"),
    ):
        heights = _step_weights(solver, n)
        axes.bar([p + shift for p in places], heights, width=0.4, color=color, label=name)
    axes.axhline(0, color=MUTED_COLOR, linewidth=0.8)
    axes.set_xticks(places, names, fontsize=8 if n < 4 else 6)
    axes.set_xlim(places[0] - 0.7, max(places[-1], 2.6) + 0.7)
    axes.set_ylim(*limits)
    axes.tick_params(length=0)
    axes.tick_params(axis="y", labelsize=8, labelleft=first)
    axes.grid(axis="y", color=GRID_COLOR, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_title(f"step {n}: weights of $x_{{{n + 1}}}$", fontsize=10, loc="left")
    if n == 0:
        axes.legend(fontsize=8, frameon=False, loc="upper right")
    clear_frame(axes)


@torch.no_grad()
def _step_weights(solver: GeneralizedSolver, n: int) -> list[float]:
    """Weights of x_n ... x_0, then of D_n ... D_0, in update n; zero beyond the solver's order."""
    weights = solver.weights()
    result: list[float] = []
    for table in (weights.state, weights.data):
        row = table[n, : n + 1].detach().cpu().tolist()
        result += row + [0.0] * (n + 1 - len(row))
    return result


def clear_frame(axes: Axes) -> None:
    """Leave only the axes' lower line."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID_COLOR)
