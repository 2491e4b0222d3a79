"""A run: from a config and a network to a folder with a learned solver."""

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
from gas_ext.training.trainer import Trainer
from gas_ext.training.validation import Validation


@dataclass(frozen=True)
class TrainingResult:
    """What `train` returns.

    Parameters
    ----------
    folder : Path
        The run's folder.
    solver : GeneralizedSolver
        The best so far by validation, as in solver.safetensors.
    started_from : str
        What training started from, in words.
    first, last, best : Validation
        Before training, after the last iteration, and of `solver`.
    iteration : int
        Iterations made.
    signal : int or None
        What ended the run before it was done, if anything; the same call resumes it.
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
    """Learn a solver and keep all about it in a folder; resumes where an earlier call was stopped.

    Started by torchrun, several processes share every batch and the teacher samples that are missing. The
    solver is the same up to rounding; only the first process writes.

    Parameters
    ----------
    config : Config
        The recipe; see `gas_ext.configs.load_config`.
    denoiser : Denoiser
        The teacher's network, on the device to compute on. It is put in evaluation mode.
    folder : path
        The run's folder, see docs/training.md.
    steps : int, optional
        Network evaluations of the solver; what the config's section `run` says, or its first, if not given.
    loss : str, optional
        "gs" (distillation) or "gas" (with the adversarial term); what `run` says, or "gs", if not given.
    samples : SampleSource or path, optional
        Teacher samples, or their folder, which is made or grows as needed; samples/NAME if not given.
    prompts : sequence of str, optional
        For samples that have to be made, of a teacher with prompts.
    resume : bool
        Go on from the newest checkpoint in the folder, if there is one. Otherwise start over.
    wandb : str, optional
        Project on Weights & Biases to log to.
    reporter : Reporter, optional
        Told about progress.

    Returns
    -------
    TrainingResult

    Raises
    ------
    ValueError
        If settings do not fit each other, the network or the samples, or a run with other settings is in the
        folder, or one that another process is making.
    RuntimeError
        If loss or gradient is not finite in ``config.training.max_rejected`` iterations in a row; what was
        good has been saved.

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
    """Make the run of a plan in a folder, with these processes; otherwise as `train`."""
    config, run = plan.config, plan.run
    if reporter is None or not processes.is_first:
        reporter = SilentReporter()
    assembly = _Assembly(plan, denoiser.eval(), processes)
    settings = {**described(config, run.loss), "teacher": f"{denoiser.name} {denoiser.weights_hash}".strip()}
    with folder.held() if processes.is_first else nullcontext(), deterministic():
        if resume:
            folder.find(settings)  # that it is another run is said before samples are made for hours
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
        settings["samples"] = _samples_hash(source, assembly.samples)
        checkpoint = folder.find(settings, reporter.message) if resume else None
        processes.wait()  # none may write before all have looked
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
    """The parts of a run. What may be refused is built with it, before anything long begins."""

    def __init__(self, plan: RunPlan, denoiser: Denoiser, processes: Processes) -> None:
        self.config = config = plan.config
        self.run, self.training_config = plan.run, plan.training_config
        self.train_samples, self.validation_samples = plan.samples.values()
        self.samples = self.train_samples + self.validation_samples
        self.denoiser, self.processes = denoiser, processes
        if denoiser.sample_shape != config.space.shape:
            raise ValueError(
                f"{denoiser.name} makes samples of shape {denoiser.sample_shape}, but the config "
                f"{config.name} describes {config.space.shape}; give the teacher that belongs to it."
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
        adversary = self._adversary
        return RunData(
            source,
            self.denoiser,
            self.training_config,
            self.train_samples,
            self.validation_samples,
            self.processes,
            images=self._images,
            fresh_noise=adversary is not None,
            labels=adversary is not None and takes_labels(adversary.discriminator, self.denoiser),
        )

    def start(
        self, folder: RunFolder, data: RunData, checkpoint: Checkpoint | None, reporter: Reporter
    ) -> tuple[GeneralizedSolver, str]:
        """Return the solver to start from and its name: made by the first process, read by all."""
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
        return Objective(
            GASSampler(solver, self.denoiser, recompute=self.training_config.recompute),
            self._distance,
            adversary=self._adversary,
            decode=self.denoiser.decode if self._images else None,
            autocast=self._autocast,
            processes=self.processes,
        )

    def pictures(
        self, folder: RunFolder, data: RunData, start: GeneralizedSolver, name: str
    ) -> Pictures | None:
        """Return what draws pictures, if any are wanted."""
        count = self.config.training.shown_images
        if count == 0:
            return None
        compared = copy.deepcopy(start)  # itself, it will learn
        return Pictures(folder.path / IMAGES, self.denoiser, data.shown(count), compared, name)


def _readable(path: Path) -> bool:
    try:
        return bool(GeneralizedSolver.load(path).training_summary["start"])
    except (OSError, ValueError, KeyError):
        return False


def _samples_hash(source: SampleSource, count: int) -> str | None:
    """Return what tells a teacher's first samples from others, wherever they lie."""
    return short_hash(source.settings_of(count)) if isinstance(source, TeacherSamples) else None


def _seeds(source: SampleSource, count: int) -> dict[str, str]:
    """Return the seeds that are learned from and judged on, where known: comparisons are to take others."""
    seeds = getattr(source, "seeds", None)
    return {} if seeds is None else {"seeds": format_seeds(seeds[:count])}
