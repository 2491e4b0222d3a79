"""A picture of the samples of several solvers, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gas_ext._utils.figures import (
    CLASSICAL_COLOR,
    LEARNED_COLOR,
    MUTED_COLOR,
    TEACHER_COLOR,
    new_figure,
    save_figure,
)
from gas_ext._utils.noise import image_grid, to_uint8
from gas_ext.evaluation import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLORS = {"teacher": TEACHER_COLOR, "classical": CLASSICAL_COLOR, "learned": LEARNED_COLOR}


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
