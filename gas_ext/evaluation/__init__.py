"""Solvers judged side by side on the same seeds.

`compare` is the harness: any number of solvers, kept on disk, resumable, with confidence intervals.
`evaluate` judges a few in memory.
"""

from gas_ext.evaluation.in_memory import Contestant, References, Row, evaluate
from gas_ext.evaluation.results import Cell, Comparison
from gas_ext.evaluation.run import compare
from gas_ext.samples.draw import SampleRun, draw_samples

__all__ = [
    "Cell",
    "Comparison",
    "Contestant",
    "References",
    "Row",
    "SampleRun",
    "compare",
    "draw_samples",
    "evaluate",
]
