"""Comparison of solvers on the same seeds.

`compare` evaluates any number of solvers. It stores its results on disk, resumes after an interruption, and
returns confidence intervals.
"""

from gas_ext.evaluation.results import Cell, Comparison
from gas_ext.evaluation.run import compare
from gas_ext.samples.draw import SampleRun, draw_samples

__all__ = [
    "Cell",
    "Comparison",
    "SampleRun",
    "compare",
    "draw_samples",
]
