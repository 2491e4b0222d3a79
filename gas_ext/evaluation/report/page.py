"""One HTML page with everything about a comparison: no network, no other file."""

from __future__ import annotations

import base64
from html import escape
from importlib.resources import files
from string import Template

from gas_ext.evaluation.measures import MEASURES, Measure
from gas_ext.evaluation.report.grids import has_images, rows_of, strip, strip_png
from gas_ext.evaluation.report.plots import ABSCISSAS, panel_svg, plotted, styles
from gas_ext.evaluation.report.wording import (
    group_headings,
    heading,
    milliseconds,
    reach_text,
    sections,
    settings_lines,
    short_heading,
    value_text,
)
from gas_ext.evaluation.results import BEST, NOISE, Cell, Comparison

_ON_CARDS = ("l1", "frechet_to_teacher", "frechet_to_data")
_SMALL = 128  # images below this many pixels are shown with sharp pixels


def to_html(comparison: Comparison) -> str:
    """Return the page."""
    title = comparison.title or "Comparison of solvers"
    return Template(_asset("page.html")).substitute(
        title=escape(title),
        style=_asset("page.css"),
        script=_asset("page.js"),
        lead=escape(_lead(comparison)),
        cards=_cards(comparison),
        filters=_filters(comparison),
        table=_table(comparison),
        left_out=_left_out(comparison),
        plots=_plots(comparison),
        grids=_grids(comparison),
        settings=_definitions(settings_lines(comparison)),
        explanations=_definitions(_explanations(comparison)),
    )


def _asset(name: str) -> str:
    return files(__package__).joinpath(f"assets/{name}").read_text(encoding="utf-8")


def _lead(comparison: Comparison) -> str:
    solvers, teacher = len(comparison.labels), comparison.settings["teacher"]["name"]
    nfes = [str(nfe) for nfe in comparison.nfes]
    listed = " and ".join([", ".join(nfes[:-1]), nfes[-1]]) if len(nfes) > 1 else nfes[0]
    return (
        f"{solvers} solver{'' if solvers == 1 else 's'} for {teacher} with {listed} network "
        f"evaluation{'' if nfes == ['1'] else 's'}, judged on the same {comparison.samples:,} seeds."
    )


def _cards(comparison: Comparison) -> str:
    """Say, for each number of evaluations, which solver is the best."""
    cards = []
    for nfe in comparison.nfes:
        cells = [cell for cell in comparison.judged if cell.nfe == nfe]
        lines = [_card_line(m, cells, comparison) for m in comparison.measures if m.base in _ON_CARDS]
        if len(cells) > 1 and any(lines):
            plural = "" if nfe == 1 else "s"
            cards.append(
                f'<div class="card"><h3>Best of {nfe} evaluation{plural}</h3><dl>{"".join(lines)}</dl></div>'
            )
    return f'<section class="cards" aria-label="Best solvers">{"".join(cards)}</section>' if cards else ""


def _card_line(measure: Measure, cells: list[Cell], comparison: Comparison) -> str:
    best = [cell for cell in cells if cell.marks.get(measure.key) == BEST]
    if not best:
        return ""
    estimate = best[0].estimate(measure.key)
    also = [cell.label for cell in cells if cell.marks.get(measure.key) == NOISE]
    text = f"<b>{_breakable(best[0].label)}</b> {value_text(measure, estimate)} "
    text += f'<span class="quiet">{reach_text(measure, estimate)}</span>'
    if also:
        text += f'<br><span class="quiet">within noise: {escape(", ".join(also))}</span>'
    return f"<dt>{escape(heading(measure, comparison))}</dt><dd>{text}</dd>"


def _filters(comparison: Comparison) -> str:
    buttons = ['<button type="button" data-nfe="" aria-pressed="true">all</button>']
    for nfe in comparison.nfes:
        buttons.append(f'<button type="button" data-nfe="{nfe}" aria-pressed="false">NFE {nfe}</button>')
    return "".join(buttons) if len(comparison.nfes) > 1 else ""


def _table(comparison: Comparison) -> str:
    groups = group_headings(comparison)
    above = ['<th class="name" scope="col"></th><th></th>']
    below = [_head("solver", 0, "ascending", "name"), _head("NFE", 1, "ascending")]
    for title, measures in groups.items():
        above.append(f'<th colspan="{len(measures)}" scope="colgroup">{escape(title)}</th>')
        for measure in measures:
            name = short_heading(measure, comparison) + (f" ({measure.unit})" if measure.unit else "")
            order = "descending" if measure.higher_is_better else "ascending"
            below.append(_head(name, len(below), order, _first(measure, measures), _explanation(measure)))
    above.append("<th></th>")
    below.append(_head("ms/image", len(below), "ascending", "first"))
    rows = [_row(cell, groups, comparison) for section in sections(comparison) for cell in section]
    return (
        f'<table>\n<thead>\n<tr class="group">{"".join(above)}</tr>\n<tr>{"".join(below)}</tr>\n</thead>\n'
        f"<tbody>\n{''.join(rows)}</tbody>\n</table>"
    )


def _first(measure: Measure, measures: list[Measure]) -> str:
    return "first" if measure is measures[0] else ""


def _head(name: str, column: int, order: str, kind: str = "", explanation: str = "") -> str:
    title = f' title="{escape(explanation)}"' if explanation else ""
    return (
        f'<th scope="col" class="{kind}" data-column="{column}" data-first="{order}"{title}>'
        f'<button type="button">{escape(name)}</button></th>'
    )


def _explanation(measure: Measure) -> str:
    return f"{measure.explanation}; {'higher' if measure.higher_is_better else 'lower'} is better"


def _row(cell: Cell, groups: dict[str, list[Measure]], comparison: Comparison) -> str:
    texts = [
        f'<th scope="row" class="name" title="{escape(cell.description)}"><span>'
        f"{_swatch(cell, comparison)}<span>{_breakable(cell.label)}</span></span></th>",
        f'<td data-value="{cell.nfe}">{cell.nfe}</td>',
    ]
    for measures in groups.values():
        texts += [_number(measure, cell, _first(measure, measures)) for measure in measures]
    time = cell.numbers.ms_per_image
    texts.append(f'<td class="first" data-value="{"" if time is None else time}">{milliseconds(cell)}</td>')
    return f'<tr class="{cell.kind}" data-nfe="{cell.nfe}">{"".join(texts)}</tr>\n'


def _number(measure: Measure, cell: Cell, kind: str) -> str:
    estimate, mark = cell.estimate(measure.key), cell.marks.get(measure.key)
    face = {BEST: "best", NOISE: "noise"}.get(mark or "", "")
    half = reach_text(measure, estimate)
    small = f"<small>{half}</small>" if half else ""
    title = f' title="{escape(mark)}"' if mark else ""
    value = "" if estimate is None else repr(estimate.value)
    faces = " ".join(filter(None, (kind, face)))
    return f'<td class="{faces}" data-value="{value}"{title}>{value_text(measure, estimate)}{small}</td>'


def _swatch(cell: Cell, comparison: Comparison) -> str:
    style = styles(comparison).get(cell.label)
    color = "var(--quiet)" if style is None else style["color"]
    return f'<span class="swatch {cell.kind}" style="color:{color}"></span>'


def _breakable(label: str) -> str:
    """Return a label that may be broken before its times."""
    return escape(label).replace("@", "<wbr>@")


def _left_out(comparison: Comparison) -> str:
    if not comparison.left_out:
        return ""
    lines = [
        f"<li>{escape(f'{it.label}, {it.nfe} evaluations: {it.reason}')}</li>" for it in comparison.left_out
    ]
    return f"<details><summary>Left out</summary><ul>{''.join(lines)}</ul></details>"


def _plots(comparison: Comparison) -> str:
    measures = plotted(comparison)
    if not measures:
        return ""
    first = {cell.label: cell for cell in reversed(comparison.judged)}
    items = [f"<li>{_swatch(first[label], comparison)}{escape(label)}</li>" for label in comparison.labels]
    items.append('<li><span class="dotted"></span>teacher</li>')
    legend = f'<ul class="legend">{"".join(items)}</ul>'
    sections = []
    for abscissa, name in ABSCISSAS.items():
        panels = "".join(panel_svg(comparison, measure, abscissa) for measure in measures)
        sections.append(
            f'<section id="plots-{abscissa}"><h2>Quality against {name}</h2>{legend}'
            f'<div class="panels">{panels}</div></section>'
        )
    return "\n".join(sections)


def _grids(comparison: Comparison) -> str:
    if not has_images(comparison):
        return ""
    blocks = []
    for nfe in comparison.nfes:
        cells = rows_of(comparison, nfe)
        teachers = {cell.folder: cell for cell in cells if cell.kind == "teacher"}
        lines = "".join(_strip_lines(cell, teachers.get(cell.teacher)) for cell in cells)
        blocks.append(
            f"<h3>{nfe} evaluation{'' if nfe == 1 else 's'}</h3>"
            f'<div class="scroll" tabindex="0" role="region" aria-label="Samples with {nfe} evaluations">'
            f'<div class="strips">{lines}</div></div>'
        )
    return (
        '<section id="samples"><h2>Samples</h2><p class="quiet">Each column starts from the same noise.</p>'
        '<button type="button" class="toggle" aria-pressed="false">show differences to the teacher</button>'
        f"{''.join(blocks)}</section>"
    )


def _strip_lines(cell: Cell, teacher: Cell | None) -> str:
    note = f"{cell.nfe} evaluations"
    if cell.estimate("l1") is not None:
        note = f"L1 {value_text(MEASURES['l1'], cell.estimate('l1'))}"
    name = f"<span>{_breakable(cell.label)}</span><small>{note}</small>"
    lines = f'<div class="name">{name}</div>{_image(cell, None)}'
    if teacher is not None:
        lines += f'<div class="name difference"><small>difference</small></div>{_image(cell, teacher)}'
    return lines


def _image(cell: Cell, teacher: Cell | None) -> str:
    count, width = len(cell.shown), cell.shown.shape[-1]
    data = base64.b64encode(strip_png(strip(cell, teacher), count)).decode()
    faces = " ".join(
        filter(None, ("small" if width < _SMALL else "", "difference" if teacher is not None else ""))
    )
    what = "samples" if teacher is None else "difference to the teacher's samples"
    text = escape(f"{count} {what} of {cell.label} with {cell.nfe} evaluations")
    return f'<img class="{faces}" alt="{text}" src="data:image/png;base64,{data}">'


def _definitions(lines: list[tuple[str, str]]) -> str:
    return "\n".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in lines if text)


def _explanations(comparison: Comparison) -> list[tuple[str, str]]:
    return [
        (heading(measure, comparison), _explanation(measure))
        for measures in group_headings(comparison).values()
        for measure in measures
    ]
