"""A whole comparison: many solvers, several NFEs, one set of seeds."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from gas_ext._utils.files import check_output_folder
from gas_ext._utils.processes import Processes, join_processes
from gas_ext._utils.progress import Reporter, SilentReporter
from gas_ext._utils.seeds import SeedList, format_seeds
from gas_ext.denoisers import Denoiser
from gas_ext.evaluation.chunks import CellFolder, ChunkSampler
from gas_ext.evaluation.entries import (
    Entry,
    SolverLike,
    TeacherLike,
    build_entries,
    check_seeds,
    named_solvers,
    solver_identity,
)
from gas_ext.evaluation.features import FeatureExtractor, load_features
from gas_ext.evaluation.judging import GROUPS, Judge
from gas_ext.evaluation.metrics import Reference
from gas_ext.evaluation.results import Cell, Comparison, mark_cells
from gas_ext.evaluation.setup import Setup
from gas_ext.samples import spread_conditions

CELLS = "cells"

# A name for `gas_ext.evaluation.features.load_features`, or an extractor itself.
Features: TypeAlias = str | FeatureExtractor


def compare(
    denoiser: Denoiser,
    solvers: Sequence[SolverLike] | Mapping[str, SolverLike],
    nfe: Sequence[int],
    folder: str | os.PathLike[str],
    *,
    teacher: TeacherLike,
    seeds: Sequence[int],
    labels: Sequence[int] | Tensor | None = None,
    prompts: Sequence[str] | None = None,
    conditions: Tensor | None = None,
    features: Features | Sequence[Features] = (),
    reference: Reference | None = None,
    perceptual: bool = False,
    t_eps: float | None = None,
    guidance_scale: float | None = None,
    autocast: torch.dtype | None = None,
    batch_size: int = 50,
    groups: int = GROUPS,
    training_seeds: Sequence[int] | None = (),
    title: str = "",
    reporter: Reporter | None = None,
    processes: Processes | None = None,
) -> Comparison:
    """Evaluate solvers on the same seeds; resumes an earlier call in the same folder.

    Every solver is sampled chunk by chunk, and each chunk's results are one file in the folder. With another
    solver, NFE or reference or more seeds, only what is missing is computed. Under torchrun every process
    samples its share of the chunks, and all return the same.

    Parameters
    ----------
    denoiser : Denoiser
        The network, on the device to compute on.
    solvers : sequence or mapping
        Names of `gas_ext.solvers.registry`, files of learned solvers (``{nfe}`` in a path is replaced by the
        NFE), or solvers. "LABEL=NAME", or a mapping, sets their names in tables. A label may map to
        {nfe: name} for a different name or file for each NFE.
    nfe : sequence of int
        Numbers of network evaluations.
    folder : path
        Where the chunks are stored.
    teacher : Solver or callable
        The teacher's solver, or a function from the student's NFE to the teacher's solver.
    seeds : sequence of int
        Seeds of the noise, held out from training; at least 20 with `features`.
    labels, prompts, conditions
        As for `generate_samples`.
    features : str or FeatureExtractor, or a sequence of them
        Networks for distances of distributions; default: none are measured. Networks that take bytes get
        those of the teacher's images (`Denoiser.truncates`). Numbers of the second and further ones have
        keys such as "frechet_to_teacher@efficientnet-lite0".
    reference : Reference, optional
        Real data, compared in the features that it was made with. Default: distances of distributions are
        to the teacher's samples only.
    perceptual : bool
        Whether to measure the perceptual distance, with the first of `features` that has feature maps;
        default False.
    t_eps : float, optional
        Final time of solvers built by name; default: the denoiser's.
    guidance_scale : float, optional
        As for `GASSampler`, the same for all solvers.
    autocast : torch.dtype, optional
        Precision of the network while sampling; default: float32.
    batch_size : int
        Samples per network call; default 50.
    groups : int
        Groups of consecutive seeds for the confidence intervals, or 0 for none; default 20.
    training_seeds : sequence of int, optional
        Training seeds of learned solvers whose files do not record them; None allows any seeds.
    title : str
        Heading of the report.
    reporter : Reporter, optional
        Receives progress.
    processes : Processes, optional
        Processes that share the work; default: those started by torchrun.

    Returns
    -------
    Comparison
        Pass it to `gas_ext.evaluation.report.write_report` for tables, plots and the page.

    Raises
    ------
    TypeError
        If the denoiser is not a Denoiser.
    ValueError
        If a solver is unknown, belongs to another network or was learned from one of the seeds, or if
        settings do not fit each other.
    OSError
        If the disk is full.

    Examples
    --------
    >>> import tempfile
    >>> from gas_ext.solvers.registry import build_solver
    >>> from gas_ext.teachers.demo import load_demo_teacher
    >>> denoiser = load_demo_teacher()
    >>> teacher = build_solver("dpm++-3@logsnr", denoiser.schedule, 3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     comparison = compare(denoiser, ["ddim"], [1, 2], folder, teacher=teacher, seeds=range(4))
    >>> [(cell.label, cell.nfe) for cell in comparison.cells]
    [('teacher', 3), ('ddim', 1), ('ddim', 2)]
    """
    if not isinstance(denoiser, Denoiser):
        raise TypeError(
            f"The denoiser is a {type(denoiser).__name__}, but must be a Denoiser; wrap a function with "
            "Denoiser.from_callable."
        )
    folder = _checked_folder(Path(folder))
    seeds = SeedList.of(seeds)
    spread = spread_conditions(denoiser, seeds, labels, prompts, conditions)
    extractors = _load_extractors(features, denoiser)
    setup = Setup(denoiser, seeds, spread, guidance_scale, autocast, batch_size, extractors, perceptual)
    setup.check()
    judge = Judge(setup, reference, groups)
    entries, left_out = build_entries(
        named_solvers(solvers), nfe, denoiser, teacher, t_eps=t_eps, guidance_scale=guidance_scale
    )
    if training_seeds is not None:
        check_seeds(entries, setup.seeds, training_seeds)
    processes = processes or join_processes(denoiser.device)
    work = _Work(setup, entries, folder / CELLS, processes, reporter or SilentReporter())
    work.sample()
    cells = work.judge(judge)
    data = None
    if reference is not None:
        data = {"name": reference.name, "sha256": reference.sha256, "count": reference.count}
    described, count = setup.described, len(setup.seeds)
    return Comparison(title, described, format_seeds(seeds), count, cells, data, left_out, judge.groups)


def _load_extractors(
    features: Features | Sequence[Features], denoiser: Denoiser
) -> tuple[FeatureExtractor, ...]:
    several = [features] if isinstance(features, str | FeatureExtractor) else features
    loaded = [load_features(it, denoiser.device) if isinstance(it, str) else it for it in several]
    return tuple(it.truncated() if denoiser.truncates else it for it in loaded)


def _checked_folder(folder: Path) -> Path:
    """Return the folder if it is writable and contains no other report that would be replaced."""
    target = check_output_folder(folder)
    foreign = [name for name in ("index.html", "results.json") if (target / name).exists()]
    if foreign and not (target / CELLS).is_dir():
        raise ValueError(
            f"{folder / foreign[0]} exists, but {folder} is not the folder of a comparison; choose "
            "another folder (-o)."
        )
    return target


class _Work:
    """The entries of a comparison and the folders of their cells."""

    def __init__(
        self, setup: Setup, entries: Sequence[Entry], root: Path, processes: Processes, reporter: Reporter
    ) -> None:
        self.setup, self.entries, self.processes = setup, list(entries), processes
        self.reporter = reporter if processes.is_first else SilentReporter()
        self.folders: list[CellFolder] = []
        self.teachers: dict[str, CellFolder] = {}
        for entry in entries:
            solver = solver_identity(entry.solver, setup.denoiser, setup.guidance_scale)
            cell = CellFolder(root / setup.cell_identity(solver, entry.teacher))
            self.folders.append(cell)
            if entry.kind == "teacher":
                self.teachers[solver] = cell

    def sample(self) -> None:
        """Sample this process's chunks of every cell, and return when all processes are done."""
        # Every solver's chunks are distributed the same way, so a process has the teacher's samples it needs.
        chunks = self.setup.chunks()[self.processes.rank :: self.processes.count]
        for entry, cell in zip(self.entries, self.folders, strict=True):
            if self.processes.is_first:
                cell.describe({"solver": entry.label, "description": entry.description, "steps": entry.steps})
            missing = [chunk for chunk in chunks if cell.read(chunk) is None]
            if not missing:
                continue
            sampler = ChunkSampler(self.setup, entry)
            name = f"{entry.label}, {entry.steps} evaluations"
            with self.reporter.task(name, sum(len(chunk.rows) for chunk in missing)) as advance:
                for chunk in missing:
                    teacher = None
                    if entry.kind != "teacher":
                        teacher = self.teachers[entry.teacher].require(chunk).tensors["samples"]
                    cell.write(chunk, sampler.run(chunk, teacher, advance))
        self.processes.wait()

    def judge(self, judge: Judge) -> list[Cell]:
        """Return the cells with their numbers; the first process measures, the others read its results."""
        if not self.processes.is_first:
            self.processes.wait()
        cells = []
        first = judge.chunks[0]
        with self.reporter.task("Measuring", len(self.entries)) as advance:
            for entry, cell in zip(self.entries, self.folders, strict=True):
                if self.processes.is_first:
                    cell.clear_leftovers()
                teacher = self.teachers.get(entry.teacher)
                numbers, shown = judge.numbers(cell, teacher), cell.require(first).tensors["shown"]
                folder = f"{CELLS}/{cell.path.name}"
                guide = "" if teacher is None else f"{CELLS}/{teacher.path.name}"
                cells.append(Cell(entry.label, entry.kind, entry.description, numbers, shown, folder, guide))
                advance(1)
        if self.processes.is_first:
            self.processes.wait()
        return mark_cells(cells)
