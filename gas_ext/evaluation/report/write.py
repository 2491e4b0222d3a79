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
    """Write the report of a comparison.

    Parameters
    ----------
    comparison : Comparison
        What `gas_ext.evaluation.compare` returned.
    folder : path
        Made if missing; the files of an earlier report are replaced.

    Returns
    -------
    Path
        The page, index.html. With it: results.json, results.csv, results.md, quality-nfe.png,
        quality-time.png and grids/nfe-N.png.
    """
    target = check_output_folder(Path(folder))
    record = json.dumps(comparison.to_dict(), indent=2, allow_nan=False) + "\n"
    for name, text in (
        ("results.json", record),
        ("results.csv", to_csv(comparison)),
        ("results.md", to_markdown(comparison)),
        (PAGE, to_html(comparison)),
    ):
        write_file(target / name, text.encode())
    write_plots(comparison, target)
    write_grids(comparison, target / "grids")
    return target / PAGE
