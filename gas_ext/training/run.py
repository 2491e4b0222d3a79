"""A run: trains the solver of a config in a folder."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

from gas_ext._utils.modes import deterministic, in_precision
from gas_ext._utils.processes import Processes, join_processes
from gas_ext._utils.progress import Reporter, SilentReporter
from gas_ext._utils.seeds import format_seeds
from gas_ext.configs import Config
from gas_ext.configs.base import LossKind
from gas_ext.denoisers import Denoiser
from gas_ext.sampler import GASSampler
from gas_ext.samples import TeacherSamples
from gas_ext.samples.manifest import short_hash
from gas_ext.samples.reading import SampleSource
from gas_ext.solvers.generalized import GeneralizedSolver
from gas_ext.training.adversarial import make_adversary, takes_labels
from gas_ext.training.checkpoints import Checkpoint
from gas_ext.training.data import RunData
from gas_ext.training.folder import BEST, IMAGES, START, RunFolder, described
from gas_ext.training.learner import Learner
from gas_ext.training.logs import Logs, open_logs
from gas_ext.training.losses import get_loss
from gas_ext.training.objective import Objective
from gas_ext.training.pictures import Pictures
from gas_ext.training.plan import RunPlan, make_plan
from gas_ext.training.settings import AUTOCAST
from gas_ext.training.start import make_start
from gas_ext.training.teacher_samples import compares_images, open_samples
from gas_ext.training.trainer import Trainer, Validation


@dataclass(frozen=True)
class TrainingResult:
    """Result of `train`.

    Parameters
    ----------
    folder : Path
        The run's folder.
    solver : GeneralizedSolver
        The best solver so far by validation, as in solver.safetensors.
    started_from : str
        Description of the start.
    first, last, best : Validation
        Before training, after the last iteration, and of `solver`.
    iteration : int
        Iterations made.
    signal : int or None
        Signal that interrupted the run, if any; the same call resumes it.
    """

    folder: Path
    solver: GeneralizedSolver
    started_from: str
    first: Validation
    last: Validation
    best: Validation
    iteration: int
    signal: int | None = None


def train(
    config: Config,
    denoiser: Denoiser,
    folder: str | os.PathLike[str],
    *,
    steps: int | None = None,
    loss: LossKind | None = None,
    samples: SampleSource | str | os.PathLike[str] | None = None,
    prompts: Sequence[str] | None = None,
    resume: bool = True,
    wandb: str | None = None,
    reporter: Reporter | None = None,
) -> TrainingResult:
    """Train a solver in a folder; the same call resumes an interrupted run.

    Processes started by torchrun share every batch and the generation of missing teacher samples. The solver
    is the same up to rounding; only the first process writes.

    Parameters
    ----------
    config : Config
        The recipe; see `gas_ext.configs.load_config`.
    denoiser : Denoiser
        The teacher's network, on the device to compute on. It is put in evaluation mode.
    folder : path
        The run's folder, see docs/training.md.
    steps : int, optional
        Network evaluations (NFE) of the solver. Default: the config's section `run`, else the first entry of
        student.steps.
    loss : str, optional
        "gs" (distillation) or "gas" (with the adversarial term). Default: the section `run`, else "gs".
    samples : SampleSource or path, optional
        Teacher samples, or their folder; missing samples are generated. Default: samples/NAME.
    prompts : sequence of str, optional
        Prompts for samples to be generated, if the teacher takes prompts.
    resume : bool
        Resume from the newest checkpoint in the folder. If False, start over.
    wandb : str, optional
        Weights & Biases project to log to.
    reporter : Reporter, optional
        Receives progress and messages; silent by default.

    Raises
    ------
    ValueError
        If settings do not fit each other, the network or the samples, or the folder has a run with other
        settings or is in use by another process.
    RuntimeError
        If loss or gradient is not finite in ``config.training.max_rejected`` iterations in a row; the last
        good parameters have been saved.

    Examples
    --------
    >>> from gas_ext.configs import load_config
    >>> from gas_ext.teachers.folder import load_teacher
    >>> config = load_config("demo", ["training.iterations=1000"])
    >>> result = train(config, load_teacher("demo"), "runs/demo", steps=4, loss="gas")  # doctest: +SKIP
    >>> result.solver.save("solver.safetensors")  # doctest: +SKIP
    """
    path, source = (samples, None) if isinstance(samples, str | os.PathLike) else (None, samples)
    return make_run(
        make_plan(config, loss, steps, samples=path),
        denoiser,
        RunFolder(Path(folder)),
        join_processes(denoiser.device),
        source,
        prompts=prompts,
        resume=resume,
        wandb=wandb,
        reporter=reporter,
    )


def make_run(
    plan: RunPlan,
    denoiser: Denoiser,
    folder: RunFolder,
    processes: Processes,
    source: SampleSource | None = None,
    *,
    prompts: Sequence[str] | None = None,
    resume: bool = True,
    wandb: str | None = None,
    reporter: Reporter | None = None,
) -> TrainingResult:
    """Make the run of a plan, with these processes; otherwise as `train`."""
    if reporter is None or not processes.is_first:
        reporter = SilentReporter()
    run = _Run(plan, denoiser.eval(), folder, processes, reporter)
    with folder.lock() if processes.is_first else nullcontext(), deterministic():
        if resume:
            folder.find(run.settings)  # refuses another run before samples are generated for hours
        data = run.data(source, prompts)
        checkpoint = folder.find(run.settings, reporter.message) if resume else None
        processes.wait()  # none may write before all have read
        if processes.is_first:
            folder.begin(plan.config, checkpoint)
        start, name = run.start(data, checkpoint)
        trainer = run.trainer(data, start, name)
        made = -1
        if checkpoint is not None:
            made = checkpoint.iteration
            trainer.load(checkpoint)
            reporter.message(f"Resuming after iteration {made}.")
        logs = open_logs(folder.path, made, run.settings, wandb) if processes.is_first else Logs()
        with closing(logs):
            signal = trainer.run(logs)
    processes.wait()
    first, last, best = trainer.first, trainer.last, trainer.best
    assert first is not None
    assert last is not None
    assert best is not None
    solver = GeneralizedSolver.load(folder.path / BEST)
    iteration = trainer.learner.iteration
    return TrainingResult(folder.path, solver, name, first, last, best, iteration, signal)


class _Run:
    """The parts of a run. Whatever may be invalid is checked first, before anything long begins.

    `settings` are those that a resumed run must share; `data` adds the samples.
    """

    def __init__(
        self, plan: RunPlan, denoiser: Denoiser, folder: RunFolder, processes: Processes, reporter: Reporter
    ) -> None:
        self._plan, self._config, self._training = plan, plan.config, plan.training_config
        self._denoiser, self._processes, self._reporter = denoiser, processes, reporter
        self._folder = folder
        self._teacher = {"name": denoiser.name, "weights_hash": denoiser.weights_hash}
        self.settings = described(plan.config, plan.run.loss)
        self.settings["teacher"] = f"{denoiser.name} {denoiser.weights_hash}".strip()
        self._seeds: dict[str, str] = {}
        if denoiser.sample_shape != self._config.space.shape:
            raise ValueError(
                f"{denoiser.name} makes samples of shape {denoiser.sample_shape}, but the config "
                f"{self._config.name} describes {self._config.space.shape}; use the config's own teacher."
            )
        self._check_shares()
        self._distance = get_loss(self._training.loss, denoiser.device)
        self._adversary = make_adversary(self._config, denoiser) if plan.run.loss == "gas" else None
        self._images = compares_images(self._config)
        self._autocast = AUTOCAST[self._training.autocast] if self._training.autocast else None

    def _check_shares(self) -> None:
        """Raise ValueError unless each process gets an equal part of every batch, of enough samples."""
        count, parts = self._processes.count, self._training.accumulation
        size = min(self._training.batch_size, self._plan.samples["training"])
        if size % count or size // count < parts:
            raise ValueError(
                f"A batch of {size} samples cannot be shared equally by {count} process(es), each in {parts} "
                f"part(s); choose training.batch_size as a multiple of {count}, and training.accumulation of "
                f"at most {max(size // count, 1)}."
            )

    def data(self, source: SampleSource | None, prompts: Sequence[str] | None) -> RunData:
        """Open the samples of the run; those that its folder lacks are generated."""
        training, validation = self._plan.samples.values()
        count = training + validation
        source = open_samples(
            self._config,
            self._denoiser,
            source if source is not None else self._plan.samples_folder,
            steps=self._plan.run.steps,
            count=count,
            prompts=prompts,
            processes=self._processes,
            reporter=self._reporter,
        )
        self.settings["samples"] = None
        if isinstance(source, TeacherSamples):
            self.settings["samples"] = short_hash(source.settings_of(count))
        seeds = getattr(source, "seeds", None)
        if seeds is not None:  # so that comparisons can avoid them
            self._seeds = {"seeds": format_seeds(seeds[:count])}
        return RunData(
            source,
            self._denoiser,
            self._training,
            training,
            validation,
            self._processes,
            images=self._images,
        )

    def start(self, data: RunData, checkpoint: Checkpoint | None) -> tuple[GeneralizedSolver, str]:
        """Return the start and its description, made by the first process and read by all."""
        path = self._folder.path / START
        if self._processes.is_first and (checkpoint is None or not _readable(path)):
            with in_precision(self._denoiser.device, self._autocast):
                solver, name = make_start(
                    self._config, self._denoiser, data, self._plan.run.steps, self._reporter
                )
            self._reporter.message(f"Training starts from {name}.")
            solver.save(path, teacher=self._teacher, training={"start": name})
        self._processes.wait()
        start = GeneralizedSolver.load(path)
        return start.to(self._denoiser.device), start.training_summary["start"]

    def trainer(self, data: RunData, solver: GeneralizedSolver, name: str) -> Trainer:
        """Return what trains the solver, which is described by `name`."""
        adversary, section = self._adversary, self._config.training
        objective = Objective(
            GASSampler(solver, self._denoiser, recompute=self._training.recompute),
            self._distance,
            adversary=adversary,
            labels=adversary is not None and takes_labels(adversary.discriminator, self._denoiser),
            decode=self._denoiser.decode if self._images else None,
            autocast=self._autocast,
            processes=self._processes,
        )
        pictures = None
        if self._processes.is_first and section.shown_images:
            batch, folder = data.first_validation(section.shown_images), self._folder.path / IMAGES
            pictures = Pictures(folder, self._denoiser, batch, copy.deepcopy(solver), name)
        return Trainer(
            Learner(solver, objective, self._training),
            data,
            self._folder.path,
            settings=self.settings,
            summary={
                "data": self._config.name,
                "objective": self._plan.run.loss,
                "start": name,
                **self._seeds,
            },
            validate_every=section.validate_every,
            checkpoint_every=section.checkpoint_every,
            pictures=pictures,
            reporter=self._reporter,
        )


def _readable(path: Path) -> bool:
    try:
        return bool(GeneralizedSolver.load(path).training_summary["start"])
    except (OSError, ValueError, KeyError):
        return False
