"""Reports of a comparison: a table on the terminal, CSV, JSON, Markdown, plots, grids and one HTML page."""

from gas_ext.evaluation.report.tables import print_table, to_csv, to_markdown
from gas_ext.evaluation.report.write import write_report

__all__ = ["print_table", "to_csv", "to_markdown", "write_report"]
