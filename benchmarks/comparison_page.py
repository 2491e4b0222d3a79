"""The tables and pictures of docs/comparison.md, from the results of comparison.py."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from gas_ext._utils.files import write_file
from gas_ext.evaluation import Comparison
from gas_ext.evaluation.measures import Measure
from gas_ext.evaluation.report.wording import heading, reach_text, value_text
from gas_ext.evaluation.results import BEST, NOISE, Cell

# The measures that get a table; results.csv has all.
SHOWN = (
    "l1",
    "frechet_to_teacher",
    "frechet_to_teacher@efficientnet-lite0",
    "kid_to_teacher@efficientnet-lite0",
    "recall_to_teacher@efficientnet-lite0",
)


def write_page(
    comparison: Comparison,
    chosen: dict[str, dict[int, str]],
    screened: int,
    results: Path,
    page: Path,
    part: str,
) -> None:
    """Write the tables between the lines ``<!-- PART -->`` and ``<!-- end PART -->`` of the page.

    The plot and the numbers, from the report's folder `results`, are copied next to the page. `chosen` has
    the evaluated training-free solver by family and NFE, selected on `screened` training samples.
    """
    lines = [
        *_settings(comparison),
        "",
        f"The best of every family, chosen on {screened} training samples:",
        "",
    ]
    lines += _chosen_table(chosen)
    measures = {measure.key: measure for measure in comparison.measures}
    for key in SHOWN:
        if key in measures:
            lines += ["", f"**{_title(measures[key], comparison)}**", "", *_table(comparison, measures[key])]
    picture = f"images/{part}-quality-nfe.png"
    shutil.copyfile(results / "quality-nfe.png", page.parent / picture)
    lines += ["", f"![Quality against network evaluations]({picture})"]
    numbers = (results / "results.csv").read_text().replace(f"{results}/", "")  # no paths of this machine
    write_file(page.parent / f"{part}.csv", numbers.encode())
    lines += ["", f"All numbers with their intervals: [{part}.csv]({part}.csv)."]
    block = "\n".join([f"<!-- {part} -->", *lines, f"<!-- end {part} -->"])
    text, found = re.subn(
        f"<!-- {part} -->.*<!-- end {part} -->", lambda _: block, page.read_text(), flags=re.DOTALL
    )
    if found != 1:
        raise ValueError(
            f"{page} has no part between <!-- {part} --> and <!-- end {part} -->; add the lines."
        )
    write_file(page, text.encode())


def _settings(comparison: Comparison) -> list[str]:
    teacher = comparison.teachers[0]
    return [
        f"{comparison.samples:,} held-out seeds; the teacher is sampled with {teacher.description}, "
        f"{teacher.nfe} evaluations. **Best** at the same NFE, *within noise* of the best."
    ]


def _title(measure: Measure, comparison: Comparison) -> str:
    direction = "higher is better" if measure.higher_is_better else "lower is better"
    return f"{heading(measure, comparison)}, {direction}"


def _chosen_table(chosen: dict[str, dict[int, str]]) -> list[str]:
    nfes = sorted(next(iter(chosen.values())))
    rows = [["family", *map(str, nfes)], ["---"] * (len(nfes) + 1)]
    rows += [[family, *(f"`{names[nfe]}`" for nfe in nfes)] for family, names in chosen.items()]
    return ["| " + " | ".join(row) + " |" for row in rows]


def _table(comparison: Comparison, measure: Measure) -> list[str]:
    def text(cell: Cell) -> str:
        estimate = cell.estimate(measure.key)
        if estimate is None:
            return ""
        face = {BEST: "**", NOISE: "*"}.get(cell.marks.get(measure.key, ""), "")
        return f"{face}{value_text(measure, estimate)}{face} {reach_text(measure, estimate)}".rstrip()

    return _pivot(comparison, text)


def _pivot(comparison: Comparison, text: Callable[[Cell], str]) -> list[str]:
    """Return one row per solver and one column per number of evaluations."""
    nfes = comparison.nfes
    rows = [["solver", *map(str, nfes)], ["---", *["---:"] * len(nfes)]]
    for label in comparison.labels:
        cells = {cell.nfe: cell for cell in comparison.judged if cell.label == label}
        rows.append([label, *(text(cells[nfe]) if nfe in cells else "" for nfe in nfes)])
    return ["| " + " | ".join(row) + " |" for row in rows]
