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
    config, run = plan.config, plan.run
    if reporter is None or not processes.is_first:
        reporter = SilentReporter()
    assembly = _Assembly(plan, denoiser.eval(), processes)
    settings = {**described(config, run.loss), "teacher": f"{denoiser.name} {denoiser.weights_hash}".strip()}
    with folder.lock() if processes.is_first else nullcontext(), deterministic():
        if resume:
            folder.find(settings)  # refuses another run before samples are generated for hours
        source = open_samples(
            config,
            denoiser,
            source if source is not None else plan.samples_folder,
            steps=run.steps,
            count=assembly.samples,
            prompts=prompts,
            processes=processes,
            reporter=reporter,
        )
        data = assembly.data(source)
        if isinstance(source, TeacherSamples):
            settings["samples"] = short_hash(source.settings_of(assembly.samples))
        else:
            settings["samples"] = None
        checkpoint = folder.find(settings, reporter.message) if resume else None
        processes.wait()  # none may write before all have read
        if processes.is_first:
            folder.begin(config, checkpoint)
        start, name = assembly.start(folder, data, checkpoint, reporter)
        trainer = Trainer(
            Learner(start, assembly.objective(start), assembly.training_config),
            data,
            folder.path,
            settings=settings,
            summary={
                "data": config.name,
                "objective": run.loss,
                "start": name,
                **_seeds(source, assembly.samples),
            },
            validate_every=config.training.validate_every,
            checkpoint_every=config.training.checkpoint_every,
            pictures=assembly.pictures(folder, data, start, name) if processes.is_first else None,
            reporter=reporter,
        )
        made = -1
        if checkpoint is not None:
            made = checkpoint.iteration
            trainer.load(checkpoint)
            reporter.message(f"Resuming after iteration {made}.")
        with closing(open_logs(folder.path, made, settings, wandb) if processes.is_first else Logs()) as logs:
            ended_by = trainer.run(logs)
    processes.wait()
    return _result(trainer, folder, name, ended_by)


def _result(trainer: Trainer, folder: RunFolder, started_from: str, ended_by: int | None) -> TrainingResult:
    first, last, best = trainer.first, trainer.last, trainer.best
    assert first is not None
    assert last is not None
    assert best is not None
    solver = GeneralizedSolver.load(folder.path / BEST)
    iteration = trainer.learner.iteration
    return TrainingResult(folder.path, solver, started_from, first, last, best, iteration, ended_by)


class _Assembly:
    """The parts of a run. Whatever may be invalid is checked here, before anything long begins."""

    def __init__(self, plan: RunPlan, denoiser: Denoiser, processes: Processes) -> None:
        self.config = config = plan.config
        self.run, self.training_config = plan.run, plan.training_config
        self.train_samples, self.validation_samples = plan.samples.values()
        self.samples = self.train_samples + self.validation_samples
        self.denoiser, self.processes = denoiser, processes
        if denoiser.sample_shape != config.space.shape:
            raise ValueError(
                f"{denoiser.name} makes samples of shape {denoiser.sample_shape}, but the config "
                f"{config.name} describes {config.space.shape}; use the config's own teacher."
            )
        self._check_shares()
        self._distance = get_loss(self.training_config.loss, denoiser.device)
        self._adversary = make_adversary(config, denoiser) if self.run.loss == "gas" else None
        self._images = compares_images(config)
        self._autocast = AUTOCAST[self.training_config.autocast] if self.training_config.autocast else None

    def _check_shares(self) -> None:
        """Raise ValueError unless each process gets an equal part of every batch, of enough samples."""
        count, parts = self.processes.count, self.training_config.accumulation
        size = min(self.training_config.batch_size, self.train_samples)
        if size % count or size // count < parts:
            raise ValueError(
                f"A batch of {size} samples cannot be shared equally by {count} process(es), each in {parts} "
                f"part(s): choose training.batch_size as a multiple of {count}, and training.accumulation of "
                f"at most {max(size // count, 1)}."
            )

    def data(self, source: SampleSource) -> RunData:
        """Return training and validation samples."""
        return RunData(
            source,
            self.denoiser,
            self.training_config,
            self.train_samples,
            self.validation_samples,
            self.processes,
            images=self._images,
        )

    def start(
        self, folder: RunFolder, data: RunData, checkpoint: Checkpoint | None, reporter: Reporter
    ) -> tuple[GeneralizedSolver, str]:
        """Return the solver to start from and its description: made by the first process, read by all."""
        path = folder.path / START
        if self.processes.is_first and (checkpoint is None or not _readable(path)):
            with in_precision(self.denoiser.device, self._autocast):
                solver, name = make_start(self.config, self.denoiser, data, self.run.steps, reporter)
            reporter.message(f"Training starts from {name}.")
            teacher = {"name": self.denoiser.name, "weights_hash": self.denoiser.weights_hash}
            solver.save(path, teacher=teacher, training={"start": name})
        self.processes.wait()
        start = GeneralizedSolver.load(path)
        return start.to(self.denoiser.device), start.training_summary["start"]

    def objective(self, solver: GeneralizedSolver) -> Objective:
        """Return what the solver minimizes."""
        adversary = self._adversary
        return Objective(
            GASSampler(solver, self.denoiser, recompute=self.training_config.recompute),
            self._distance,
            adversary=adversary,
            labels=adversary is not None and takes_labels(adversary.discriminator, self.denoiser),
            decode=self.denoiser.decode if self._images else None,
            autocast=self._autocast,
            processes=self.processes,
        )

    def pictures(
        self, folder: RunFolder, data: RunData, start: GeneralizedSolver, name: str
    ) -> Pictures | None:
        """Return what draws pictures; None if `shown_images` is 0."""
        count = self.config.training.shown_images
        if count == 0:
            return None
        batch = data.first_validation(count)
        return Pictures(folder.path / IMAGES, self.denoiser, batch, copy.deepcopy(start), name)


def _readable(path: Path) -> bool:
    try:
        return bool(GeneralizedSolver.load(path).training_summary["start"])
    except (OSError, ValueError, KeyError):
        return False


def _seeds(source: SampleSource, count: int) -> dict[str, str]:
    """Return the seeds of training and validation, where known, so that comparisons can avoid them."""
    seeds = getattr(source, "seeds", None)
    return {} if seeds is None else {"seeds": format_seeds(seeds[:count])}
