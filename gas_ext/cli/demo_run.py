"""The demonstration: learn a few-step solver for the embedded teacher and compare it with the classical ones.

Seeds follow the paper's split: solvers are learned and chosen on seeds below 50,000, and evaluated on seeds
from 50,000. No number in the table comes from noise that a solver was fitted to.
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
from gas_ext.evaluation.features import load_features
from gas_ext.evaluation.report.grids import write_grid
from gas_ext.samples import SampleBatch
from gas_ext.samples.draw import draw_samples
from gas_ext.solvers.coefficients import Solver
from gas_ext.solvers.generalized import GeneralizedSolver
from gas_ext.solvers.plots import plot_solver
from gas_ext.teachers.demo import load_demo_features, load_demo_teacher
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
_OTHER_FAMILIES = ("UniPC", "DEIS", "iPNDM", "Heun")  # in addition to DPM-Solver++, of which order 1 is DDIM
_SELECTION = 96  # training samples for the choice of the classical solver and the fit of the start
_BATCH = 32
FILES = ("samples.png", "times.png", "solver.safetensors", "results.json")


@dataclass(frozen=True)
class DemoConfig:
    """The options of `gas-ext demo`, which checks their ranges.

    Raises ValueError if training seeds would overlap the held-out ones (from 50,000), or these the seeds of
    the reference statistics (from 100,000).
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
                    f"{name} is {len(seeds)}, which overlaps the reserved seeds from {end}; with seed "
                    f"{self.seed}, expected at most {end - seeds.start}."
                )

    def training_seeds(self) -> range:
        """Return the seeds of the teacher samples to learn from, below 50,000."""
        first = self.seed * _SEEDS_PER_RUN
        return range(first, first + self.train_samples)

    def held_out_seeds(self) -> range:
        """Return the seeds that solvers are evaluated on, from 50,000 to below 100,000."""
        first = _HELD_OUT + self.seed * _SEEDS_PER_RUN
        return range(first, first + self.held_out_samples)


def run_demo(config: DemoConfig, folder: str | Path, reporter: Reporter | None = None) -> dict[str, Any]:
    """Learn a solver for the embedded teacher, evaluate it on held-out seeds, and write the results.

    The folder gets samples.png, times.png, solver.safetensors and results.json when everything is done;
    existing files of these names are replaced. Returns the content of results.json, in which only "seconds"
    and "ms_per_image" differ between runs with equal settings.
    """
    folder, reporter = check_output_folder(folder), reporter or SilentReporter()
    demo = Demo(config, reporter)
    data = demo.teacher_samples()
    classical, start, candidates = demo.choose_classical(data)
    reporter.message(f"Best classical solver on training seeds: {classical.description}")
    solver, training = demo.learn(start, data)
    learned = f"learned, started from DPM-Solver++({start.order}M)"
    descriptions = [demo.guide.description, classical.description, learned]

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as name:
        stage = Path(name)
        comparisons = demo.evaluate({"classical": classical.solver, "learned": solver}, stage)
        rows = comparison_rows(comparisons, descriptions)
        record = {
            "rows": rows,
            **demo.settings(),
            "versions": comparisons[0].to_dict()["versions"],
            "started_from": start.description,
            "classical_chosen_by": "smallest L1 to the teacher on training seeds",
            "classical_l1_on_training_seeds": candidates,
            "training": {**training.to_dict(), "losses": list(map(finite_or_none, training.losses))},
            "seconds": demo.seconds,
        }
        cells = [replace(c, description=d) for c, d in zip(comparisons[0].cells, descriptions, strict=True)]
        demo.draw(cells, start, solver, stage)
        # Without times, so that equal runs give equal files.
        untimed = [{key: value for key, value in row.items() if key != "ms_per_image"} for row in rows]
        summary = {**training.to_dict(), "rows": untimed}
        solver.save(stage / "solver.safetensors", teacher=record["teacher"], training=summary)
        text = json.dumps(record, indent=2, allow_nan=False) + "\n"
        (stage / "results.json").write_text(text, encoding="utf-8")
        folder.mkdir(exist_ok=True)
        for name in FILES:
            os.replace(stage / name, folder / name)
    return record


class Demo:
    """The phases of a demo run with the embedded teacher, and the wall time of each."""

    def __init__(self, config: DemoConfig, reporter: Reporter) -> None:
        self.config, self.reporter = config, reporter
        self.teacher = teacher = load_demo_teacher(config.device)
        # Needed last and loaded first: a missing file is found before the long work.
        self.features = load_features("demo", config.device)
        self.references = [embedded_reference(name, self.features) for name in ("teacher", "data")]
        self.guide = classical_solver(teacher.schedule, _TEACHER_STEPS, 3, "logsnr", teacher.t_eps)
        self.guide.solver.to(config.device)
        self.seconds: dict[str, float] = {}

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """Measure the wall time of a phase."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)

    def settings(self) -> dict[str, Any]:
        """Return the settings of the run, as in results.json."""
        config, teacher = self.config, self.teacher
        training, held_out = config.training_seeds(), config.held_out_seeds()
        return {
            "seed": config.seed,
            "feature_extractor": load_demo_features().name,
            "teacher": {"name": teacher.name, "weights_hash": teacher.weights_hash},
            "steps": config.steps,
            "iterations": config.iterations,
            "device": config.device,
            "training_seeds": [training[0], training[-1]],
            "held_out_seeds": [held_out[0], held_out[-1]],
        }

    def teacher_samples(self) -> SampleBatch:
        """Return the teacher samples to learn from."""
        teacher, seeds = self.teacher, self.config.training_seeds()
        noise = stacked_noise(seeds, teacher.sample_shape, device=self.config.device)
        labels = seed_labels(seeds, teacher.num_classes, self.config.device)
        with (
            self._phase("teacher samples"),
            self.reporter.task("Drawing teacher samples", len(noise)) as advance,
        ):
            guide = self.guide.solver
            run = draw_samples(guide, teacher, noise, labels, batch_size=_BATCH, progress=advance)
        return SampleBatch(noise, run.samples, labels, None, None)

    def choose_classical(self, data: SampleBatch) -> tuple[Baseline, Baseline, dict[str, float | None]]:
        """Pick the training-free solver closest to the teacher on some of the training seeds.

        Returns the closest of all families, the closest DPM-Solver++, and all distances.
        """
        teacher, steps = self.teacher, self.config.steps
        starts = classical_solvers(teacher.schedule, steps, teacher.t_eps)
        others = named_baselines(teacher.schedule, steps, teacher.t_eps, _OTHER_FAMILIES)
        candidates = [*starts, *others]
        few = take(data, slice(_SELECTION))
        with (
            self._phase("classical solvers"),
            self.reporter.task("Comparing classical solvers", len(candidates)) as advance,
        ):
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

    def learn(self, start: Baseline, data: SampleBatch) -> tuple[GeneralizedSolver, TrainingSummary]:
        """Learn all coefficients, starting from the best DPM-Solver++ with fitted weights."""
        config, teacher = self.config, self.teacher
        solver = GeneralizedSolver(
            teacher.schedule,
            config.steps,
            t_eps=teacher.t_eps,
            theory_order=start.order,
            timesteps=start.spacing,
            prediction_type=teacher.prediction_type,
        ).to(config.device)
        few = take(data, slice(_SELECTION))
        with self._phase("training"):
            with self.reporter.task("Fitting the start", len(FIRST_LEVELS)) as advance:
                fit_start(
                    solver,
                    teacher,
                    few.noise,
                    few.samples,
                    few.condition,
                    batch_size=_BATCH,
                    progress=lambda level, distance: advance(1, note=f"L1 {distance:.4f}"),
                )
            with self.reporter.task("Learning a solver", config.iterations) as advance:
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

    def evaluate(self, solvers: dict[str, Solver], folder: Path) -> list[Comparison]:
        """Compare the solvers with the teacher, and their features with those of each reference."""
        with self._phase("evaluation"):
            # The second comparison reuses the samples that the first has stored in the folder.
            return [
                compare(
                    self.teacher,
                    solvers,
                    [self.config.steps],
                    folder,
                    teacher=self.guide.solver,
                    seeds=self.config.held_out_seeds(),
                    features=self.features,
                    reference=reference,
                    batch_size=_BATCH,
                    groups=0,
                    training_seeds=self.config.training_seeds(),
                    reporter=self.reporter,
                )
                for reference in self.references
            ]

    def draw(self, cells: list[Cell], start: Baseline, solver: GeneralizedSolver, folder: Path) -> None:
        """Draw the samples of all solvers, and the learned times and coefficients."""
        steps = self.config.steps
        evaluations = f"{steps} network evaluation{'' if steps == 1 else 's'}"
        title = f"{self.teacher.name}: teacher, and two solvers with {evaluations}"
        write_grid(cells, title, folder / "samples.png", differences=True)
        plot_solver(
            solver,
            start.solver,
            folder / "times.png",
            start_name=start.description,
            title=f"What the {steps}-step solver learned",
        )


def comparison_rows(comparisons: list[Comparison], descriptions: list[str]) -> list[dict[str, Any]]:
    """Return the rows of teacher, classical and learned solver; numbers that are not finite are None."""

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
            # The reference of the first comparison is 10,000 other samples of the teacher.
            "frechet_to_teacher": value(cell, "frechet_to_data"),
            "frechet_to_data": value(same, "frechet_to_data"),
            "ms_per_image": cell.numbers.ms_per_image,
        }
        for cell, same, description in zip(to_teacher, to_data, descriptions, strict=True)
    ]
