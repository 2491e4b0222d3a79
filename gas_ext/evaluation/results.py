"""Results of a comparison as plain data: cells with their numbers, and which of them differ."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from gas_ext.evaluation.entries import LeftOut
from gas_ext.evaluation.judging import Numbers
from gas_ext.evaluation.measures import Measure, in_order
from gas_ext.evaluation.metrics import Estimate

LEVEL = 0.95  # of confidence
BEST, NOISE = "best", "within noise of the best"


@dataclass(frozen=True)
class Cell:
    """One solver with one NFE.

    Parameters
    ----------
    label : str
        Name in tables and plots, the same for every NFE of one solver.
    kind : str
        "teacher", "classical" or "learned".
    description : str
        Description for readers.
    numbers : Numbers
        NFE, time per image, and estimates of all measures.
    shown : Tensor
        (n, C, H, W) uint8: images of the first seeds.
    folder : str
        Where its chunks are, relative to the comparison's folder.
    teacher : str
        Folder of the teacher that it is compared with; empty for the teacher itself.
    marks : dict
        By measure: "best" among the solvers of the same NFE, or "within noise of the best".
    """

    label: str
    kind: str
    description: str
    numbers: Numbers
    shown: Tensor = field(repr=False)
    folder: str = ""
    teacher: str = ""
    marks: dict[str, str] = field(default_factory=dict)

    @property
    def nfe(self) -> int:
        """Network evaluations per sample."""
        return self.numbers.nfe

    def estimate(self, key: str) -> Estimate | None:
        """Return a measure by its key, or None if it was not measured or is not finite."""
        return self.numbers.estimates.get(key)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as in results.json."""
        return {
            "solver": self.label,
            "kind": self.kind,
            "description": self.description,
            "nfe": self.nfe,
            "ms_per_image": self.numbers.ms_per_image,
            "timing": self.numbers.timing,
            "folder": self.folder,
            "measures": {key: self._describe(key, found) for key, found in self.numbers.estimates.items()},
            "provenance": self.numbers.provenance,
        }

    def _describe(self, key: str, estimate: Estimate) -> dict[str, Any]:
        described: dict[str, Any] = {"value": estimate.value, "standard_error": None, "interval": None}
        if estimate.replicates:
            described["standard_error"] = estimate.standard_error
            described["interval"] = list(estimate.interval(LEVEL))
        return {**described, "mark": self.marks.get(key)}


@dataclass(frozen=True)
class Comparison:
    """Solvers side by side.

    Parameters
    ----------
    title : str
        Heading of the report.
    settings : dict
        Settings of all cells as plain values: teacher, guidance, precision, features.
    seeds : str
        The seeds, such as "50000-50499".
    samples : int
        Number of seeds.
    cells : list of Cell
        Teachers first, then solver by solver.
    reference : dict or None
        Name, SHA-256 and size of the real data.
    left_out : list of LeftOut
        Solvers that do not support an NFE, and why.
    groups : int
        Groups of the jackknife.

    Examples
    --------
    >>> from gas_ext.evaluation.judging import Numbers
    >>> found = Numbers(4, 1.5, {}, {"l1": Estimate(0.1, (0.1, 0.1))})
    >>> cell = Cell("unipc-3", "classical", "UniPC-3", found, torch.zeros(0))
    >>> comparison = Comparison("", {}, "0-1", 2, [cell], None, [], 2)
    >>> comparison.cell("unipc-3", 4).estimate("l1").value
    0.1
    """

    title: str
    settings: dict[str, Any]
    seeds: str
    samples: int
    cells: list[Cell]
    reference: dict[str, Any] | None
    left_out: list[LeftOut]
    groups: int

    @property
    def judged(self) -> list[Cell]:
        """All cells except the teachers'."""
        return [cell for cell in self.cells if cell.kind != "teacher"]

    @property
    def teachers(self) -> list[Cell]:
        """The teachers' cells."""
        return [cell for cell in self.cells if cell.kind == "teacher"]

    @property
    def nfes(self) -> list[int]:
        """Numbers of network evaluations of the solvers, increasing."""
        return sorted({cell.nfe for cell in self.judged})

    @property
    def labels(self) -> list[str]:
        """Labels of the solvers, in the order given."""
        return list(dict.fromkeys(cell.label for cell in self.judged))

    @property
    def measures(self) -> list[Measure]:
        """Everything that was measured for at least one solver, in the order of tables."""
        return in_order([key for cell in self.cells for key in cell.numbers.estimates])

    def cell(self, label: str, nfe: int) -> Cell:
        """Return one cell; raises KeyError if there is none."""
        for cell in self.cells:
            if (cell.label, cell.nfe) == (label, nfe):
                return cell
        raise KeyError(f"There is no cell {label!r} with {nfe} evaluations.")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as in results.json: every number with its interval and provenance."""
        import gas_ext

        return {
            "format_version": 1,
            "title": self.title,
            "samples": self.samples,
            "seeds": self.seeds,
            "confidence": {"level": LEVEL, "method": "delete-a-group jackknife", "groups": self.groups},
            "settings": self.settings,
            "reference": self.reference,
            "measures": {
                measure.key: {
                    "title": measure.title,
                    "explanation": measure.explanation,
                    "better": measure.better,
                }
                for measure in self.measures
            },
            "cells": [cell.to_dict() for cell in self.cells],
            "left_out": [{"solver": it.label, "nfe": it.nfe, "reason": it.reason} for it in self.left_out],
            "versions": {
                "gas_ext": gas_ext.__version__,
                "torch": str(torch.__version__),
                "python": platform.python_version(),
            },
        }


def mark_cells(cells: Sequence[Cell]) -> list[Cell]:
    """Mark, among solvers of the same NFE, the best of each measure and those within noise of it.

    The difference to the best is paired by seeds and groups, so that common variation cancels.

    >>> from gas_ext.evaluation.judging import Numbers
    >>> def cell(label, value, *replicates):
    ...     numbers = Numbers(4, None, {}, {"l1": Estimate(value, replicates)})
    ...     return Cell(label, "classical", "", numbers, torch.zeros(0))
    >>> cells = [cell("a", 1.0, 0.9, 1.1), cell("b", 1.1, 1.0, 1.2), cell("c", 1.1, 1.15, 1.05)]
    >>> [marked.marks for marked in mark_cells(cells)]
    [{'l1': 'best'}, {}, {'l1': 'within noise of the best'}]
    """
    marks: list[dict[str, str]] = [{} for _ in cells]
    for nfe in {cell.nfe for cell in cells}:
        for measure in in_order([key for cell in cells for key in cell.numbers.estimates]):
            found = {
                index: estimate
                for index, cell in enumerate(cells)
                if cell.kind != "teacher" and cell.nfe == nfe and (estimate := cell.estimate(measure.key))
            }
            if len(found) < 2:
                continue
            sign = -1.0 if measure.higher_is_better else 1.0
            best = min(found, key=lambda index: sign * found[index].value)
            for index, estimate in found.items():
                if index == best:
                    marks[index][measure.key] = BEST
                elif estimate.replicates and (estimate - found[best]).is_noise(LEVEL):
                    marks[index][measure.key] = NOISE
    return [replace(cell, marks=found) for cell, found in zip(cells, marks, strict=True)]
