"""The demonstration: learn a few-step solver for the embedded teacher and compare it with the classical ones.

Seeds follow the paper's split: solvers are learned and chosen on seeds below 50,000 and judged on seeds from
50,000 on, so no number in the table comes from noise that any solver was fitted to.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gas_ext._utils.distances import finite_or_none
from gas_ext._utils.files import check_output_folder
from gas_ext._utils.noise import seed_labels, stacked_noise, take
from gas_ext._utils.progress import Reporter, SilentReporter
from gas_ext.cli.judging import embedded_reference
from gas_ext.evaluation import Cell, Comparison, compare
from gas_ext.evaluation.features import FeatureExtractor, load_features
from gas_ext.evaluation.metrics import Reference
from gas_ext.evaluation.report.grids import write_grid
from gas_ext.samples import SampleBatch
from gas_ext.samples.draw import draw_samples
from gas_ext.solvers.coefficients import Solver
from gas_ext.solvers.generalized import GeneralizedSolver
from gas_ext.solvers.plots import plot_solver
from gas_ext.teachers.demo import DemoTeacher, load_demo_features, load_demo_teacher
from gas_ext.training import TrainingConfig, TrainingSummary, train_solver
from gas_ext.training.baselines import (
    Baseline,
    classical_solver,
    classical_solvers,
    named_baselines,
    nearest,
    select_baseline,
)
from gas_ext.training.warm_start import FIRST_LEVELS, fit_start

_HELD_OUT = 50_000  # first held-out seed
_REFERENCE = 100_000  # first seed of the samples behind the reference statistics
_SEEDS_PER_RUN = 1000  # distance between the seeds of demo runs with consecutive --seed
_TEACHER_STEPS = 20
_OTHER_FAMILIES = ("UniPC", "DEIS", "iPNDM", "Heun")  # than DPM-Solver++, whose first order is DDIM
_SELECTION = 96  # training samples on which the classical solvers are compared, and the start is fitted
_BATCH = 32
FILES = ("samples.png", "times.png", "solver.safetensors", "results.json")


@dataclass(frozen=True)
class DemoConfig:
    """The options of `gas-ext demo`, whose ranges are checked there.

    Raises
    ------
    ValueError
        If the training seeds would reach the held-out ones (50,000), or these the seeds behind the reference
        statistics (100,000).
    """

    steps: int = 4
    iterations: int = 300
    seed: int = 0
    device: str = "cpu"
    train_samples: int = 256
    held_out_samples: int = 1000

    def __post_init__(self) -> None:
        """Keep the sets of seeds apart."""
        for name, seeds, end in (
            ("train_samples", self.training_seeds(), _HELD_OUT),
            ("held_out_samples", self.held_out_seeds(), _REFERENCE),
        ):
            if seeds.stop > end:
                raise ValueError(
                    f"{name} is {len(seeds)}, which runs into the seeds from {end} on that are reserved; "
                    f"with seed {self.seed} expected at most {end - seeds.start}"
                )

    def training_seeds(self) -> range:
        """Seeds whose teacher samples are learned from, below 50,000."""
        first = self.seed * _SEEDS_PER_RUN
        return range(first, first + self.train_samples)

    def held_out_seeds(self) -> range:
        """Seeds on which solvers are judged, from 50,000 to below 100,000."""
        first = _HELD_OUT + self.seed * _SEEDS_PER_RUN
        return range(first, first + self.held_out_samples)


def run_demo(config: DemoConfig, folder: str | Path, reporter: Reporter | None = None) -> dict[str, Any]:
    """Learn a solver for the embedded teacher, judge it on held-out seeds, and write what was found.

    Parameters
    ----------
    config : DemoConfig
        The settings.
    folder : str or Path
        Made if missing; gets samples.png, times.png, solver.safetensors and results.json, all at the end, and
        earlier files of these names are replaced.
    reporter : Reporter, optional
        Receives progress; silent by default.

    Returns
    -------
    dict
        What results.json holds; only "seconds" and "ms_per_image" differ between equal runs.
    """
    folder, reporter = check_output_folder(folder), reporter or SilentReporter()
    teacher = load_demo_teacher(config.device)
    # Needed last and loaded first: a missing file is found before the long work.
    features = load_features("demo", config.device)
    references = [embedded_reference(name, features) for name in ("teacher", "data")]
    seconds: dict[str, float] = {}

    guide = classical_solver(teacher.schedule, _TEACHER_STEPS, 3, "logsnr", teacher.t_eps)
    guide.solver.to(config.device)
    with _phase("teacher samples", seconds):
        data = _teacher_samples(config, teacher, guide, reporter)
    with _phase("classical solvers", seconds):
        classical, start, candidates = _choose_classical(config, teacher, data, reporter)
    reporter.message(f"Best classical solver on training seeds: {classical.description}")
    with _phase("training", seconds):
        solver, training = _learn(config, teacher, start, data, reporter)
    learned = f"learned, started from DPM-Solver++({start.order}M)"
    descriptions = [guide.description, classical.description, learned]

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as name:
        stage = Path(name)
        with _phase("evaluation", seconds):
            solvers = {"classical": classical.solver, "learned": solver}
            # The second finds the samples of the first in the folder.
            comparisons = [
                _judge(config, teacher, guide, solvers, features, reference, stage, reporter)
                for reference in references
            ]
        rows = _rows(comparisons, descriptions)
        record = {
            "rows": rows,
            "seed": config.seed,
            "versions": comparisons[0].to_dict()["versions"],
            "feature_extractor": load_demo_features().name,
            "teacher": {"name": teacher.name, "weights_hash": teacher.weights_hash},
            "steps": config.steps,
            "iterations": config.iterations,
            "device": config.device,
            "started_from": start.description,
            "training_seeds": [config.training_seeds()[0], config.training_seeds()[-1]],
            "held_out_seeds": [config.held_out_seeds()[0], config.held_out_seeds()[-1]],
            "classical_chosen_by": "smallest L1 to the teacher on training seeds",
            "classical_l1_on_training_seeds": candidates,
            "training": {**training.to_dict(), "losses": list(map(finite_or_none, training.losses))},
            "seconds": seconds,
        }
        cells = [replace(c, description=d) for c, d in zip(comparisons[0].cells, descriptions, strict=True)]
        _draw(config, teacher, cells, start, solver, stage)
        # Without times, so that equal runs give equal files.
        found = [{key: value for key, value in row.items() if key != "ms_per_image"} for row in rows]
        summary = {**training.to_dict(), "rows": found}
        solver.save(stage / "solver.safetensors", teacher=record["teacher"], training=summary)
        text = json.dumps(record, indent=2, allow_nan=False) + "\n"
        (stage / "results.json").write_text(text, encoding="utf-8")
        folder.mkdir(exist_ok=True)
        for name in FILES:
            os.replace(stage / name, folder / name)
    return record


@contextmanager
def _phase(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Take the wall-clock time of a phase."""
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 2)


def _teacher_samples(
    config: DemoConfig, teacher: DemoTeacher, guide: Baseline, reporter: Reporter
) -> SampleBatch:
    """Return the samples to learn from."""
    seeds = config.training_seeds()
    noise = stacked_noise(seeds, teacher.sample_shape, device=config.device)
    labels = seed_labels(seeds, teacher.num_classes, config.device)
    with reporter.task("Drawing teacher samples", len(noise)) as advance:
        run = draw_samples(guide.solver, teacher, noise, labels, batch_size=_BATCH, progress=advance)
    return SampleBatch(noise, run.samples, labels, None, None)


def _choose_classical(
    config: DemoConfig, teacher: DemoTeacher, data: SampleBatch, reporter: Reporter
) -> tuple[Baseline, Baseline, dict[str, float | None]]:
    """Pick the training-free solver nearest to the teacher on some of the training seeds.

    Returns the nearest of all families, the nearest DPM-Solver++, and all distances.
    """
    starts = classical_solvers(teacher.schedule, config.steps, teacher.t_eps)
    others = named_baselines(teacher.schedule, config.steps, teacher.t_eps, _OTHER_FAMILIES)
    candidates = [*starts, *others]
    few = take(data, slice(_SELECTION))
    with reporter.task("Comparing classical solvers", len(candidates)) as advance:
        best, distances = select_baseline(
            candidates,
            teacher,
            few.noise,
            few.samples,
            few.condition,
            batch_size=_BATCH,
            progress=lambda candidate, distance: advance(1, note=f"L1 {distance:.4f}"),
        )
    start = nearest(starts, distances[: len(starts)])
    found = {c.description: finite_or_none(d) for c, d in zip(candidates, distances, strict=True)}
    return best, start, found


def _learn(
    config: DemoConfig, teacher: DemoTeacher, start: Baseline, data: SampleBatch, reporter: Reporter
) -> tuple[GeneralizedSolver, TrainingSummary]:
    """Start from the best DPM-Solver++, its weights fitted, and learn all of its numbers."""
    solver = GeneralizedSolver(
        teacher.schedule,
        config.steps,
        t_eps=teacher.t_eps,
        theory_order=start.order,
        timesteps=start.spacing,
        prediction_type=teacher.prediction_type,
    ).to(config.device)
    few = take(data, slice(_SELECTION))
    with reporter.task("Fitting the start", len(FIRST_LEVELS)) as advance:
        fit_start(
            solver,
            teacher,
            few.noise,
            few.samples,
            few.condition,
            batch_size=_BATCH,
            progress=lambda level, distance: advance(1, note=f"L1 {distance:.4f}"),
        )
    with reporter.task("Learning a solver", config.iterations) as advance:
        summary = train_solver(
            solver,
            teacher,
            data.noise,
            data.samples,
            data.condition,
            config=TrainingConfig(iterations=config.iterations, seed=config.seed),
            progress=lambda iteration, loss: advance(1, note=f"L1 {loss:.4f}"),
        )
    return solver, summary


def _judge(
    config: DemoConfig,
    teacher: DemoTeacher,
    guide: Baseline,
    solvers: dict[str, Solver],
    features: FeatureExtractor,
    reference: Reference,
    folder: Path,
    reporter: Reporter,
) -> Comparison:
    """Compare the solvers with the teacher, and its features with those of the reference."""
    return compare(
        teacher,
        solvers,
        [config.steps],
        folder,
        teacher=guide.solver,
        seeds=config.held_out_seeds(),
        features=features,
        reference=reference,
        batch_size=_BATCH,
        groups=0,
        training_seeds=config.training_seeds(),
        reporter=reporter,
    )


def _rows(comparisons: list[Comparison], descriptions: list[str]) -> list[dict[str, Any]]:
    """Return the rows of teacher, classical and learned solver, where a number that is not finite is None."""

    def value(cell: Cell, key: str) -> float | None:
        estimate = cell.estimate(key)
        return None if estimate is None else estimate.value

    to_teacher, to_data = (comparison.cells for comparison in comparisons)
    return [
        {
            "solver": cell.label,
            "description": description,
            "nfe": cell.nfe,
            "l1_to_teacher": 0.0 if cell.kind == "teacher" else value(cell, "l1"),
            # Both are distances to a reference: one to 10,000 other samples of the teacher.
            "frechet_to_teacher": value(cell, "frechet_to_data"),
            "frechet_to_data": value(same, "frechet_to_data"),
            "ms_per_image": cell.numbers.ms_per_image,
        }
        for cell, same, description in zip(to_teacher, to_data, descriptions, strict=True)
    ]


def _draw(
    config: DemoConfig,
    teacher: DemoTeacher,
    cells: list[Cell],
    start: Baseline,
    solver: GeneralizedSolver,
    folder: Path,
) -> None:
    """Draw the samples of all, and what the solver learned."""
    plural = "" if config.steps == 1 else "s"
    write_grid(
        cells,
        f"{teacher.name}: teacher, and two solvers with {config.steps} network evaluation{plural}",
        folder / "samples.png",
        differences=True,
    )
    plot_solver(
        solver,
        start.solver,
        folder / "times.png",
        classical_name=start.description,
        role="start",
        title=f"What the {config.steps}-step solver learned",
    )
