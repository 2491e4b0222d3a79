"""One HTML page with everything about a comparison: it needs no network and no other file."""

from __future__ import annotations

import base64
from importlib.resources import files

from gas_ext.evaluation.measures import Measure
from gas_ext.evaluation.report import wording
from gas_ext.evaluation.report.grids import caption, has_images, rows_of, strip, strip_png
from gas_ext.evaluation.report.plots import ABSCISSAS, panel_svg, plotted, styles
from gas_ext.evaluation.results import BEST, NOISE, Cell, Comparison

_ON_CARDS = ("l1", "frechet_to_teacher", "frechet_to_data")


def to_html(comparison: Comparison) -> str:
    """Render the template assets/page.html."""
    from jinja2 import Environment, StrictUndefined

    groups = wording.group_headings(comparison)
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    return environment.from_string(_asset("page.html")).render(
        comparison=comparison,
        title=comparison.title or "Comparison of solvers",
        style=_asset("page.css"),
        script=_asset("page.js"),
        lead=_lead(comparison),
        cards=_cards(comparison),
        groups=groups,
        columns=[(m, "first" if m is group[0] else "") for group in groups.values() for m in group],
        cells=[cell for section in wording.sections(comparison) for cell in section],
        faces={BEST: "best", NOISE: "noise"},
        styles=styles(comparison),
        solvers=[next(c for c in comparison.judged if c.label == label) for label in comparison.labels],
        plotted=plotted(comparison),
        abscissas=ABSCISSAS,
        has_images=has_images(comparison),
        settings=wording.settings_lines(comparison),
        caption=caption,
        panel_svg=panel_svg,
        picture=_picture,
        with_teachers=_with_teachers,
        wording=wording,
    )


def _asset(name: str) -> str:
    return files(__package__).joinpath(f"assets/{name}").read_text(encoding="utf-8")


def _lead(comparison: Comparison) -> str:
    solvers, teacher = len(comparison.labels), comparison.settings["teacher"]["name"]
    nfes = [str(nfe) for nfe in comparison.nfes]
    listed = " and ".join([", ".join(nfes[:-1]), nfes[-1]]) if len(nfes) > 1 else nfes[0]
    return (
        f"{solvers} solver{'' if solvers == 1 else 's'} for {teacher} with {listed} network "
        f"evaluation{'' if nfes == ['1'] else 's'}, compared on the same {comparison.samples:,} seeds."
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
