"""Plots of a comparison: quality against network evaluations, and against time."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gas_ext._utils.figures import GRID_COLOR, MUTED_COLOR, clear_frame, new_figure, save_figure
from gas_ext.evaluation.measures import Measure
from gas_ext.evaluation.report.wording import heading, reach
from gas_ext.evaluation.results import Cell, Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOTTED = ("l1", "psnr", "frechet_to_teacher", "frechet_to_data")
ABSCISSAS = {"nfe": "network evaluations", "time": "milliseconds per image"}

# Okabe and Ito, in an order in which neighbors differ most, then the same again with other markers.
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8F7A00")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_INK, _LINES = "#010203", "#040506"  # replaced in the SVG by colors of the page


def styles(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """Return color, marker and line of each solver: solid if learned, else dashed."""
    found = {}
    for number, label in enumerate(comparison.labels):
        kind = next(cell.kind for cell in comparison.judged if cell.label == label)
        color = _COLORS[number % len(_COLORS)]
        found[label] = {
            "color": color,
            "marker": _MARKERS[(number + number // len(_COLORS)) % len(_MARKERS)],
            "linestyle": "-" if kind == "learned" else (0, (4, 2)),
            "markerfacecolor": color if kind == "learned" else "none",
        }
    return found


def plotted(comparison: Comparison) -> list[Measure]:
    """Return the measures that are plotted."""
    measured = {key for cell in comparison.judged for key in cell.numbers.estimates}
    return [m for m in comparison.measures if m.base in PLOTTED and m.key in measured]


def draw_panel(
    axes: Axes,
    comparison: Comparison,
    measure: Measure,
    abscissa: str,
    ink: str = MUTED_COLOR,
    lines: str = GRID_COLOR,
) -> None:
    """Draw one measure of all solvers with its confidence intervals."""
    abscissas: list[float] = []
    values: list[float] = []
    for label, style in styles(comparison).items():
        points = _points([cell for cell in comparison.judged if cell.label == label], measure, abscissa)
        if not points:
            continue
        nfes, x, y, error = zip(*points, strict=True)
        axes.errorbar(
            x, y, error, label=label, capsize=2, linewidth=1.6, markersize=5.5, elinewidth=1, **style
        )
        if abscissa == "time":  # the position does not show the number of evaluations
            font = {"fontsize": 7, "color": style["color"]}
            for nfe, *point in zip(nfes, x, y, strict=True):
                axes.annotate(str(nfe), tuple(point), (3, 3), textcoords="offset points", **font)
        abscissas += x
        values += y
    for level in {e.value for cell in comparison.teachers if (e := cell.estimate(measure.key))}:
        axes.axhline(level, color=ink, linewidth=1.4, linestyle=":", label="teacher")
        values.append(level)
    if measure.logarithmic and values and min(values) > 0:
        axes.set_yscale("log")
        _plain_ticks(axes.yaxis, values)
    if abscissa == "time" and abscissas and min(abscissas) > 0:
        axes.set_xscale("log")
        _plain_ticks(axes.xaxis, abscissas)
    elif abscissa == "nfe":
        axes.set_xticks(comparison.nfes)
        axes.margins(x=0.12)
    title = heading(measure, comparison)
    space = " " if len(title) < 30 else "\n"
    axes.set_title(f"{title},{space}{measure.better} is better", fontsize=10, loc="left", color=ink)
    axes.set_xlabel(ABSCISSAS[abscissa], fontsize=9, color=ink)
    axes.grid(color=lines, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=8.5, colors=ink, which="both")
    clear_frame(axes)
    axes.spines["bottom"].set_color(lines)


def _points(cells: Sequence[Cell], measure: Measure, abscissa: str) -> list[tuple[int, float, float, float]]:
    """Return NFE, abscissa, value and half the interval of each cell, by increasing NFE."""
    points = []
    for cell in cells:
        estimate = cell.estimate(measure.key)
        x = cell.nfe if abscissa == "nfe" else cell.numbers.ms_per_image
        if estimate is not None and x is not None:
            points.append((cell.nfe, float(x), estimate.value, reach(estimate) or 0.0))
    return sorted(points)


def _plain_ticks(axis: Any, values: Sequence[float]) -> None:
    """Label a logarithmic axis with plain numbers: at 1, 2, 5, or closer if its range is small."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    if max(values) > 8 * min(values):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    else:
        axis.set_major_locator(MaxNLocator(5))
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))


def write_plots(comparison: Comparison, folder: Path) -> list[Path]:
    """Write quality-nfe.png and quality-time.png, or remove earlier ones if nothing was measured."""
    measures = plotted(comparison)
    paths = [folder / f"quality-{abscissa}.png" for abscissa in ABSCISSAS]
    if not measures:
        for path in paths:
            path.unlink(missing_ok=True)
        return []
    for abscissa, path in zip(ABSCISSAS, paths, strict=True):
        save_figure(_figure(comparison, measures, abscissa), path)
    return paths


def _figure(comparison: Comparison, measures: Sequence[Measure], abscissa: str) -> Figure:
    columns = 2 if len(measures) > 1 else 1
    rows = math.ceil(len(measures) / columns)
    legend_rows = math.ceil((len(comparison.labels) + 1) / 4)
    figure = new_figure(4.3 * columns, 3.2 * rows + 0.45 + 0.24 * legend_rows)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    handles: dict[str, Any] = {}
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, measure in zip(panels, measures, strict=False):
        draw_panel(axes, comparison, measure, abscissa)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    for axes in panels[len(measures) :]:
        axes.remove()
    order = [label for label in (*comparison.labels, "teacher") if label in handles]
    figure.legend(
        [handles[label] for label in order],
        order,
        title=f"Quality against {ABSCISSAS[abscissa]}",
        title_fontproperties={"size": 13, "weight": "bold"},
        alignment="left",
        loc="outside upper left",
        ncols=4,
        fontsize=8.5,
        frameon=False,
    )
    return figure


def panel_svg(comparison: Comparison, measure: Measure, abscissa: str) -> str:
    """Return one panel as an SVG element in the page's text color, for light and dark pages."""
    import matplotlib as mpl

    figure = new_figure(4.1, 3.1)
    figure.patch.set_alpha(0.0)
    axes = figure.add_axes((0.13, 0.17, 0.85, 0.68))
    axes.patch.set_alpha(0.0)
    draw_panel(axes, comparison, measure, abscissa, _INK, _LINES)
    text = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "gas_ext"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    name = f"{abscissa}-{measure.key}"
    return _for_page(
        text.getvalue().decode(), name, f"{heading(measure, comparison)} by {ABSCISSAS[abscissa]}"
    )


def _for_page(svg: str, name: str, title: str) -> str:
    """Extract the element from an SVG file, with unique ids and the colors of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|xlink:href="#|\burl\(#)', rf"\g<1>{name}-", svg)
    svg = svg.replace(_INK, "currentColor").replace(_LINES, "var(--line)")
    svg = re.sub(r'^<svg([^>]*?) height="[^"]*"', r"<svg\1", svg)
    svg = re.sub(r'^<svg([^>]*?) width="[^"]*"', rf'<svg\1 role="img" aria-label="{escape(title)}"', svg)
    return svg
