"""Write the pages of performance and its targets from a run of the benchmarks, or compare it with another.

    pytest benchmarks/ --benchmark-only --benchmark-json=results.json
    python benchmarks/report.py results.json -o docs/performance.md
    python benchmarks/report.py results.json -o docs/experiments/2026-11-24-performance-targets.md
    python benchmarks/report.py results.json --compare old.json    # exits with 1 if something is slower

Rewrites only the parts of the page between `<!-- measured: NAME -->` and `<!-- end measured -->`, and the
plots images/performance-*.png. A new page starts as a copy of docs/performance.md.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from pathlib import Path

from performance_plots import write_plots
from performance_tables import SECTIONS
from results import Results, Row, read_results

PAGE = Path(__file__).resolve().parent.parent / "docs" / "performance.md"
TARGETS = "targets"  # the one table with a page of its own, a dated one in docs/experiments
PART = re.compile(r"(<!-- measured: ([a-z ]+) -->\n).*?(<!-- end measured -->)", re.DOTALL)
LEAST_CHANGE = 0.1  # smaller changes can come from another memory layout
QUARTILES = 2.0  # and changes within so many times the spread from noise


def fill(page: str, results: Results) -> str:
    """Return a page with the tables of a run; ValueError if its parts are not exactly the known ones."""
    names = [name for _, name, _ in PART.findall(page)]
    tables = [name for name in SECTIONS if name != TARGETS]
    if names != [TARGETS] and sorted(names) != sorted(tables):
        raise ValueError(
            f"The page has parts for {', '.join(names) or 'nothing'}, but needs one each for "
            f"{', '.join(tables)}, or one for {TARGETS}: <!-- measured: NAME --> and <!-- end measured -->."
        )
    return PART.sub(lambda found: f"{found[1]}\n{SECTIONS[found[2]](results)}\n\n{found[3]}", page)


def write_page(results: Results, path: Path) -> None:
    """Write the page and its plots."""
    page = fill((path if path.is_file() else PAGE).read_text("utf-8"), results)
    if f"<!-- measured: {TARGETS} -->" not in page:
        write_plots(results, path.parent / "images")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, "utf-8")


def change(new: Row, old: Row) -> tuple[float, float]:
    """Return how much slower a row has become, as a logarithm, and the noise of this number.

    The time is relative to the geometric mean of the peers that both runs have, which cancels changes of the
    machine's load or clock. The noise is the spread of both rows and the drift of the peers.
    """
    slower = math.log(new.median / old.median)
    variance = new.noise**2 + old.noise**2
    shared = [name for name in new.peers if name in old.peers]
    for name in shared:
        slower -= math.log(new.peers[name].median / old.peers[name].median) / len(shared)
        variance += (new.peers[name].drift ** 2 + old.peers[name].drift ** 2) / len(shared) ** 2
    return slower, math.sqrt(variance)


def compare(new: Results, old: Results) -> tuple[list[str], list[str]]:
    """Return one line per row that is slower beyond noise, and one per row that is faster."""
    before = {row.name: row for row in old.rows}
    slower: list[str] = []
    faster: list[str] = []
    for row in new.rows:
        if row.name not in before:
            continue
        by, noise = change(row, before[row.name])
        if abs(by) <= max(LEAST_CHANGE, QUARTILES * noise):
            continue
        line = (
            f"{row.name}: {before[row.name].median * 1e6:.1f} us -> {row.median * 1e6:.1f} us, "
            f"{math.exp(by):.2f} times as long relative to its peers (noise {noise:.0%})"
        )
        (slower if by > 0 else faster).append(line)
    return slower, faster


def main(arguments: list[str] | None = None) -> int:
    """Write the page, compare, or both; 1 if a row is slower beyond noise, 2 if a file cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="written by pytest --benchmark-json")
    parser.add_argument("--compare", type=Path, metavar="OLD", help="an earlier run")
    parser.add_argument("-o", "--out", type=Path, help="the page to write")
    options = parser.parse_args(arguments)
    try:
        results = read_results(options.results)
        if options.out is not None:
            write_page(results, options.out)
            print(f"{options.out} written, from {len(results.rows)} rows.")
        if options.compare is None:
            return 0
        old = read_results(options.compare)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    slower, faster = compare(results, old)
    for title, lines in (("Slower", slower), ("Faster", faster)):
        print(f"{title} beyond noise: {len(lines)}", *lines, sep="\n  ")
    missing = {row.name for row in old.rows} - {row.name for row in results.rows}
    if missing:
        print(f"Not measured any more: {len(missing)}", *sorted(missing), sep="\n  ")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
