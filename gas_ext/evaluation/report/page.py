"""One HTML page with everything about a comparison: it needs no network and no other file."""

from __future__ import annotations

import base64

from gas_ext.evaluation.measures import Measure
from gas_ext.evaluation.report import wording
from gas_ext.evaluation.report.grids import caption, has_images, rows_of, strip, strip_png
from gas_ext.evaluation.report.plots import ABSCISSAS, panel_svg, plotted, styles
from gas_ext.evaluation.results import BEST, NOISE, Cell, Comparison

_ON_CARDS = ("l1", "frechet_to_teacher", "frechet_to_data")


def to_html(comparison: Comparison) -> str:
    """Render the template assets/page.html."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(__package__, "assets"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    groups = wording.group_headings(comparison)
    return environment.get_template("page.html").render(
        comparison=comparison,
        cards=_cards(comparison),
        groups=groups,
        columns=[(m, "first" if m is group[0] else "") for group in groups.values() for m in group],
        cells=[cell for section in wording.sections(comparison) for cell in section],
        styles=styles(comparison),
        solvers=[next(c for c in comparison.judged if c.label == label) for label in comparison.labels],
        plotted=plotted(comparison),
        abscissas=ABSCISSAS,
        has_images=has_images(comparison),
        caption=caption,
        panel_svg=panel_svg,
        picture=_picture,
        with_teachers=_with_teachers,
        wording=wording,
    )


def _cards(comparison: Comparison) -> list[tuple[int, list[tuple[Measure, Cell, list[str]]]]]:
    """Return, by NFE, the best solver of each main measure and those within noise of it."""
    cards = []
    for nfe in comparison.nfes:
        cells = [cell for cell in comparison.judged if cell.nfe == nfe]
        lines = []
        for measure in comparison.measures:
            best = [cell for cell in cells if cell.marks.get(measure.key) == BEST]
            if best and measure.base in _ON_CARDS:
                also = [cell.label for cell in cells if cell.marks.get(measure.key) == NOISE]
                lines.append((measure, best[0], also))
        if lines:
            cards.append((nfe, lines))
    return cards


def _with_teachers(comparison: Comparison, nfe: int) -> list[tuple[Cell, Cell | None]]:
    """Return the solvers of an NFE, each with the teacher that it is compared with."""
    cells = rows_of(comparison, nfe)
    teachers = {cell.folder: cell for cell in cells if cell.kind == "teacher"}
    return [(cell, teachers.get(cell.teacher)) for cell in cells]


def _picture(cell: Cell, teacher: Cell | None) -> str:
    return base64.b64encode(strip_png(strip(cell, teacher), len(cell.shown))).decode()
