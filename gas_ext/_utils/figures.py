"""Matplotlib figures outside of pyplot's global state, in one set of colors.

The colors are those of Okabe and Ito, which remain distinct in any common type of color vision.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gas_ext._utils.files import partial_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLASSICAL_COLOR = "#E69F00"  # orange
LEARNED_COLOR = "#0072B2"  # blue
GRID_COLOR = "#D9D9D9"
MUTED_COLOR = "#595959"


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of the given size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write the figure as PNG, atomically."""
    with partial_file(Path(path)) as partial:
        figure.savefig(partial, format="png")


def clear_frame(axes: Axes) -> None:
    """Leave only the axes' lower line."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID_COLOR)
