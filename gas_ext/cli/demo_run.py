"""The demonstration: learn a few-step solver for the embedded teacher and compare it with the classical ones.

Seeds follow the paper's split: solvers are learned and chosen on seeds below 50,000 and judged on seeds from
50,000 on, so no number in the table comes from noise that any solver was fitted to.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gas_ext._utils.files import check_output_folder
from gas_ext._utils.noise import seed_labels, stacked_noise
from gas_ext._utils.progress import Reporter, SilentReporter
from gas_ext.evaluation import Contestant, References, Row, draw_samples, evaluate
from gas_ext.evaluation.metrics import finite_or_none
from gas_ext.evaluation.plots import Strip, plot_samples
from gas_ext.solvers.generalized import GeneralizedSolver
from gas_ext.solvers.plots import plot_solver
from gas_ext.teachers.demo import DemoTeacher, load_demo_features, load_demo_statistics, load_demo_teacher
from gas_ext.training import TrainingConfig, TrainingSummary, train_solver
from gas_ext.training.baselines import (
    Baseline,
    Rival,
    classical_solver,
    classical_solvers,
    nearest,
    rivals,
    select_baseline,
)
from gas_ext.training.warm_start import FIRST_LEVELS, fit_start

_HELD_OUT = 50_000  # first held-out seed
_REFERENCE = 100_000  # first seed of the samples behind the reference statistics
_SEEDS_PER_RUN = 1000  # distance between the seeds of demo runs with consecutive --seed
_TEACHER_STEPS = 20
_OTHER_FAMILIES = ("UniPC", "DEIS", "iPNDM", "Heun")  # than DPM-Solver++, whose first order is DDIM
_BATCH = 32
_SHOWN = 20  # images per solver in the picture


@dataclass(frozen=True)
class DemoConfig:
    """Settings of `run_demo`.

    Parameters
    ----------
    steps : int
        Network evaluations of the classical and the learned solver.
    iterations : int
        Training iterations.
    seed : int
        Chooses the training seeds, the held-out seeds and the order of training; 0 to 49.
    device : str
        Where everything runs.
    train_samples, held_out_samples, selection_samples : int
        Teacher samples to learn from, held-out seeds to judge on (at least 2), and training seeds on which
        the classical solvers are compared.

    Raises
    ------
    ValueError
        If a value is out of its range, or the training seeds would reach the held-out ones (50,000), or
        these the seeds behind the reference statistics (100,000).
    """

    steps: int = 4
    iterations: int = 300
    seed: int = 0
    device: str = "cpu"
    train_samples: int = 256
    held_out_samples: int = 1000
    selection_samples: int = 96

    def __post_init__(self) -> None:
        """Check every value that has a range."""
        for name, low in (
            ("steps", 1),
            ("iterations", 1),
            ("seed", 0),
            ("train_samples", 1),
            ("held_out_samples", 2),
            ("selection_samples", 1),
        ):
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {low}")
        if self.seed >= _HELD_OUT // _SEEDS_PER_RUN:
            raise ValueError(f"seed is {self.seed}; expected 0 to {_HELD_OUT // _SEEDS_PER_RUN - 1}")
        for name, seeds, end in (
            ("train_samples", self.training_seeds(), _HELD_OUT),
            ("held_out_samples", self.held_out_seeds(), _REFERENCE),
        ):
            if seeds.stop > end:
                raise ValueError(
                    f"{name} is {len(seeds)}, which runs into the seeds from {end} on that are kept apart; "
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


@dataclass
class DemoResult:
    """What a demo run found.

    Parameters
    ----------
    rows : list of Row
        Teacher, classical and learned solver on held-out seeds.
    samples : list of Tensor
        Held-out samples of each row.
    classical : Baseline or Rival
        The best classical solver of all families on training seeds.
    start : Baseline
        The best DPM-Solver++ on them, which the learned solver starts from.
    solver : GeneralizedSolver
        The learned solver.
    training : TrainingSummary
        Its training.
    candidates : dict
        Mean L1 distance of every classical solver on training seeds, by description.
    seconds : dict
        Wall-clock time of each phase.
    config : DemoConfig
        The settings.
    teacher : DemoTeacher
        The network.
    feature_extractor : str
        Name of the network whose features the Frechet distances compare.
    """

    rows: list[Row]
    samples: list[Tensor]
    classical: Baseline | Rival
    start: Baseline
    solver: GeneralizedSolver
    training: TrainingSummary
    candidates: dict[str, float]
    config: DemoConfig
    teacher: DemoTeacher
    feature_extractor: str
    seconds: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return what results.json holds; only `seconds` and `ms_per_image` differ between equal runs."""
        import gas_ext

        return {
            "rows": [row.to_dict() for row in self.rows],
            "seed": self.config.seed,
            "versions": {
                "gas_ext": gas_ext.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "feature_extractor": self.feature_extractor,
            "teacher": {"name": self.teacher.name, "weights_hash": self.teacher.weights_hash},
            "steps": self.config.steps,
            "iterations": self.config.iterations,
            "device": self.config.device,
            "started_from": self.start.description,
            "training_seeds": [self.config.training_seeds()[0], self.config.training_seeds()[-1]],
            "held_out_seeds": [self.config.held_out_seeds()[0], self.config.held_out_seeds()[-1]],
            "classical_chosen_by": "smallest L1 to the teacher on training seeds",
            "classical_l1_on_training_seeds": {
                name: finite_or_none(distance) for name, distance in self.candidates.items()
            },
            "training": {
                **self.training.to_dict(),
                "losses": [finite_or_none(loss) for loss in self.training.losses],
            },
            "seconds": self.seconds,
        }


def run_demo(config: DemoConfig | None = None, reporter: Reporter | None = None) -> DemoResult:
    """Learn a solver for the embedded teacher and judge it on held-out seeds.

    Parameters
    ----------
    config : DemoConfig, optional
        The settings.
    reporter : Reporter, optional
        Told about progress; silent by default.

    Returns
    -------
    DemoResult
        Nothing is written to disk; see `write_demo`.
    """
    config, reporter = config or DemoConfig(), reporter or SilentReporter()
    teacher = load_demo_teacher(config.device)
    # Needed last and loaded first: a missing file is found before the long work.
    features, statistics = load_demo_features(config.device), load_demo_statistics()
    references = References(features, statistics["teacher"], statistics["data"])
    clock = _Clock()

    guide = classical_solver(teacher.schedule, _TEACHER_STEPS, 3, "logsnr", teacher.t_eps)
    noise, labels = _noise_and_labels(config.training_seeds(), teacher, config.device)
    guide.solver.to(config.device)
    with clock.phase("teacher samples"), reporter.task("Drawing teacher samples", len(noise)) as advance:
        target = draw_samples(
            guide.solver,
            teacher,
            noise,
            labels,
            prediction_type=teacher.prediction_type,
            batch_size=_BATCH,
            progress=advance,
        ).samples
    with clock.phase("classical solvers"):
        classical, start, candidates = _choose_classical(config, reporter, teacher, noise, target, labels)
    reporter.message(f"Best classical solver on training seeds: {classical.description}")
    with clock.phase("training"):
        solver, training = _learn(config, reporter, teacher, start, noise, target, labels)
    with clock.phase("evaluation"):
        rows, samples = _judge(config, reporter, teacher, references, guide, classical, start, solver)
    return DemoResult(
        rows=rows,
        samples=samples,
        classical=classical,
        start=start,
        solver=solver,
        training=training,
        candidates=candidates,
        config=config,
        teacher=teacher,
        feature_extractor=features.name,
        seconds=clock.seconds,
    )


def _noise_and_labels(seeds: range, teacher: DemoTeacher, device: str) -> tuple[Tensor, Tensor]:
    noise = stacked_noise(seeds, teacher.sample_shape, device=device)
    return noise, seed_labels(seeds, teacher.num_classes, device)


def _choose_classical(
    config: DemoConfig,
    reporter: Reporter,
    teacher: DemoTeacher,
    noise: Tensor,
    target: Tensor,
    labels: Tensor,
) -> tuple[Baseline | Rival, Baseline, dict[str, float]]:
    """Pick the training-free solver nearest to the teacher on some of the training seeds.

    Returns the nearest of all families, the nearest DPM-Solver++, and all distances.
    """
    starts = classical_solvers(teacher.schedule, config.steps, teacher.t_eps)
    candidates: list[Baseline | Rival] = [
        *starts,
        *rivals(teacher.schedule, config.steps, teacher.t_eps, _OTHER_FAMILIES),
    ]
    part = slice(0, config.selection_samples)
    with reporter.task("Comparing classical solvers", len(candidates)) as advance:
        best, distances = select_baseline(
            candidates,
            teacher,
            noise[part],
            target[part],
            labels[part],
            prediction_type=teacher.prediction_type,
            batch_size=_BATCH,
            progress=lambda candidate, distance: advance(1, note=f"L1 {distance:.4f}"),
        )
    start = nearest(starts, distances[: len(starts)])
    return best, start, {c.description: d for c, d in zip(candidates, distances, strict=True)}


def _learn(
    config: DemoConfig,
    reporter: Reporter,
    teacher: DemoTeacher,
    start: Baseline,
    noise: Tensor,
    target: Tensor,
    labels: Tensor,
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
    part = slice(0, config.selection_samples)
    with reporter.task("Fitting the start", len(FIRST_LEVELS)) as advance:
        fit_start(
            solver,
            teacher,
            noise[part],
            target[part],
            labels[part],
            batch_size=_BATCH,
            progress=lambda level, distance: advance(1, note=f"L1 {distance:.4f}"),
        )
    with reporter.task("Learning a solver", config.iterations) as advance:
        summary = train_solver(
            solver,
            teacher,
            noise,
            target,
            labels,
            config=TrainingConfig(iterations=config.iterations, seed=config.seed),
            progress=lambda iteration, loss: advance(1, note=f"L1 {loss:.4f}"),
        )
    return solver, summary


def _judge(
    config: DemoConfig,
    reporter: Reporter,
    teacher: DemoTeacher,
    references: References,
    guide: Baseline,
    classical: Baseline | Rival,
    start: Baseline,
    solver: GeneralizedSolver,
) -> tuple[list[Row], list[Tensor]]:
    """Sample held-out seeds with the three solvers; the teacher's samples are the reference."""
    noise, labels = _noise_and_labels(config.held_out_seeds(), teacher, config.device)
    learned_from = f"learned, started from DPM-Solver++({start.order}M)"
    contestants = [
        Contestant("teacher", guide.description, guide.solver),
        Contestant("classical", classical.description, classical.solver),
        Contestant("learned", learned_from, solver),
    ]
    with reporter.task("Sampling held-out seeds", len(contestants) * len(noise)) as advance:
        return evaluate(
            contestants,
            teacher,
            noise,
            condition=labels,
            references=references,
            prediction_type=teacher.prediction_type,
            batch_size=_BATCH,
            progress=advance,
        )


class _Clock:
    """Wall-clock seconds of named phases."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)


def write_demo(result: DemoResult, folder: str | Path) -> list[Path]:
    """Write pictures, solver and numbers of a demo run.

    Everything is first written to a temporary folder, so a run that is stopped leaves nothing half-written.

    Parameters
    ----------
    result : DemoResult
        What `run_demo` returned.
    folder : str or Path
        Made if missing; earlier files of the same names are replaced.

    Returns
    -------
    list of Path
        samples.png, times.png, solver.safetensors and results.json.
    """
    folder = check_output_folder(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write_files(result, stage)
        folder.mkdir(exist_ok=True)
        paths = []
        for name in ("samples.png", "times.png", "solver.safetensors", "results.json"):
            os.replace(stage / name, folder / name)
            paths.append(folder / name)
        return paths
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _write_files(result: DemoResult, folder: Path) -> None:
    steps = result.config.steps
    plural = "" if steps == 1 else "s"
    plot_samples(
        [Strip(row, images[:_SHOWN]) for row, images in zip(result.rows, result.samples, strict=True)],
        folder / "samples.png",
        title=f"{result.teacher.name}: teacher, and two solvers with {steps} network evaluation{plural}",
    )
    plot_solver(
        result.solver,
        result.start.solver,
        folder / "times.png",
        classical_name=result.start.description,
        role="start",
        title=f"What the {steps}-step solver learned",
    )
    record = result.to_dict()
    # Without times, so that equal runs give equal files.
    rows = [{name: value for name, value in row.items() if name != "ms_per_image"} for row in record["rows"]]
    summary = {**result.training.to_dict(), "rows": rows}
    result.solver.save(folder / "solver.safetensors", teacher=record["teacher"], training=summary)
    (folder / "results.json").write_text(
        json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8"
    )
