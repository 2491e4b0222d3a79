"""Solvers judged side by side on the same seeds.

`compare` takes any number of solvers; what it finds is on disk, so it can be resumed, and has confidence
intervals.
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
