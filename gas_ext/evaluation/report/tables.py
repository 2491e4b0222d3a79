"""Tables of a comparison: on the terminal, as CSV, as Markdown."""

from __future__ import annotations

import csv
import io
import re
import sys
from typing import IO

from gas_ext.evaluation.measures import Measure
from gas_ext.evaluation.report import wording
from gas_ext.evaluation.results import BEST, LEVEL, NOISE, Cell, Comparison

# The measures that fit on a terminal; the files have all.
_ON_TERMINAL = ("l1", "psnr", "frechet_to_teacher", "frechet_to_data", "kid_to_data")
_WIDTH = 160  # without a terminal
_SIGNS = {BEST: " *", NOISE: f" {wording.ALMOST}", None: "  "}
_FACES = {BEST: "**", NOISE: "*", None: ""}


def print_table(comparison: Comparison, file: IO[str] | None = None) -> None:
    """Print the main numbers as a table, grouped by NFE; to stdout by default."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    measures = [measure for measure in comparison.measures if measure.base in _ON_TERMINAL]
    table = Table(title=escape(comparison.title) or None, title_justify="left")
    table.add_column("solver", no_wrap=True)
    table.add_column("NFE", justify="right")
    for measure in measures:
        title = wording.heading(measure, comparison).replace(" to ", "\nto ").replace(" (", "\n(")
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("ms/image", justify="right")
    for cells in wording.sections(comparison):
        for cell in cells:
            texts = [_terminal_text(measure, cell) for measure in measures]
            style = "dim" if cell.kind == "teacher" else None
            table.add_row(escape(cell.label), str(cell.nfe), *texts, wording.milliseconds(cell), style=style)
        table.add_section()
    file = file or sys.stdout
    console = Console(file=file, width=None if file.isatty() else _WIDTH, highlight=False)
    note = f"* best at the same NFE, {wording.ALMOST} within noise of the best"
    if comparison.groups:
        note += f"; {wording.PLUS_MINUS} {LEVEL:.0%} intervals over {comparison.samples:,} seeds"
    with console.capture() as captured:  # as rich itself would end the process if a pipe is closed
        console.print(table)
        console.print(note, style="dim", markup=False)
    file.write(captured.get())
    file.flush()


def _terminal_text(measure: Measure, cell: Cell) -> str:
    mark = cell.marks.get(measure.key)
    text = _with_reach(measure, cell) + _SIGNS[mark]
    return f"[bold]{text}[/bold]" if mark == BEST else text


def _with_reach(measure: Measure, cell: Cell, face: str = "") -> str:
    """Return a value, between the signs of a face, and its interval."""
    estimate = cell.estimate(measure.key)
    value, reach = wording.value_text(measure, estimate), wording.reach_text(measure, estimate)
    return f"{face}{value}{face} {reach}".rstrip()


def to_csv(comparison: Comparison) -> str:
    """Return all numbers as CSV: a value, both ends of its interval and its mark for every measure.

    Examples
    --------
    >>> to_csv(Comparison("", {}, "", 0, [], None, [], 0)).splitlines()
    ['solver,kind,description,nfe,samples,ms_per_image']
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys = [measure.key for measure in comparison.measures]
    numbers = [f"{key}{end}" for key in keys for end in ("", "_low", "_high", "_mark")]
    writer.writerow(["solver", "kind", "description", "nfe", "samples", "ms_per_image", *numbers])
    for cell in comparison.cells:
        row = [cell.label, cell.kind, cell.description, cell.nfe, comparison.samples]
        row.append(cell.numbers.ms_per_image)
        for key in keys:
            estimate = cell.estimate(key)
            value = None if estimate is None else estimate.value
            ends = estimate.interval(LEVEL) if estimate and estimate.replicates else (None, None)
            row += [value, *ends, cell.marks.get(key)]
        writer.writerow(row)
    return text.getvalue()


def to_markdown(comparison: Comparison) -> str:
    """Return the tables and the settings as Markdown."""
    lines = [f"# {comparison.title or 'Comparison of solvers'}", ""]
    lines += [f"- {name}: {text}" for name, text in wording.settings_lines(comparison)]
    lines += ["", "**Best** at the same NFE; *within noise* of the best.", ""]
    for title, measures in wording.group_headings(comparison).items():
        lines += [f"## Distance {title}", "", *_markdown_table(comparison, measures), ""]
    if comparison.left_out:
        lines += ["## Left out", ""]
        lines += [f"- {it.label} with {it.nfe} evaluations: {it.reason}" for it in comparison.left_out]
        lines.append("")
    return "\n".join(lines)


def _markdown_table(comparison: Comparison, measures: list[Measure]) -> list[str]:
    names = [wording.short_heading(m, comparison) + (f" ({m.unit})" if m.unit else "") for m in measures]
    columns = [f"{name}, {m.better} is better" for name, m in zip(names, measures, strict=True)]
    rows = [["solver", "NFE", *columns, "ms per image"], ["---", *["---:"] * (len(measures) + 2)]]
    for section in wording.sections(comparison):
        for cell in section:
            texts = [_with_reach(m, cell, _FACES[cell.marks.get(m.key)]) for m in measures]
            label = re.sub(r"([\\|*_`<\[])", r"\\\1", cell.label)  # escape what Markdown interprets
            rows.append([label, str(cell.nfe), *texts, wording.milliseconds(cell)])
    return ["| " + " | ".join(row) + " |" for row in rows]
