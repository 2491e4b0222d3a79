"""All files of a report, each complete or absent."""

from __future__ import annotations

import json
import os
from pathlib import Path

from gas_ext._utils.files import check_output_folder, write_file
from gas_ext.evaluation.report.grids import write_grids
from gas_ext.evaluation.report.page import to_html
from gas_ext.evaluation.report.plots import write_plots
from gas_ext.evaluation.report.tables import to_csv, to_markdown
from gas_ext.evaluation.results import Comparison

PAGE = "index.html"


def write_report(comparison: Comparison, folder: str | os.PathLike[str]) -> Path:
    """Write the report of a comparison, and return the path of its page, index.html.

    The other files are results.json, results.csv, results.md, quality-nfe.png, quality-time.png and
    grids/nfe-N.png. The folder is created if missing; the files of an earlier report are replaced.
    """
    target = check_output_folder(Path(folder))
    files = {
        "results.json": json.dumps(comparison.to_dict(), indent=2, allow_nan=False) + "\n",
        "results.csv": to_csv(comparison),
        "results.md": to_markdown(comparison),
        PAGE: to_html(comparison),
    }
    for name, text in files.items():
        write_file(target / name, text.encode())
    write_plots(comparison, target)
    write_grids(comparison, target / "grids")
    return target / PAGE
