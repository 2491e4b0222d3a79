"""The loop of a run: iterations, validation, pictures, logs and checkpoints, until done or interrupted."""

from __future__ import annotations

import copy
import math
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from gas_ext._utils.distances import finite_or_none
from gas_ext._utils.modes import learning_through
from gas_ext._utils.progress import Reporter
from gas_ext._utils.records import reason_of
from gas_ext.sampler import GASSampler
from gas_ext.training.checkpoints import Checkpoint, save_checkpoint
from gas_ext.training.data import RunData
from gas_ext.training.folder import BEST, CHECKPOINTS, LAST
from gas_ext.training.learner import Learner, assign
from gas_ext.training.logs import Logs
from gas_ext.training.objective import Objective
from gas_ext.training.pictures import Pictures
from gas_ext.training.settings import TrainingSummary


@dataclass(frozen=True)
class Validation:
    """Distance of a solver to the teacher on samples that it is not trained on.

    Parameters
    ----------
    iteration : int
        Iterations made before.
    loss : float
        Mean distillation loss on the validation samples.
    l1 : float
        Mean absolute difference to the teacher's samples.
    rejected : int
        Iterations so far that were skipped because something was not finite.
    """

    iteration: int
    loss: float
    l1: float
    rejected: int = 0

    def better_than(self, other: Validation | None) -> bool:
        """Whether the loss is smaller; any number is better than none."""
        return other is None or self.loss < other.loss or math.isnan(other.loss)


@torch.no_grad()
def validate(
    sampler: GASSampler, objective: Objective, data: RunData, iteration: int = 0, rejected: int = 0
) -> Validation:
    """Sample the validation seeds, each process its part, and compare with the teacher's samples."""
    sums = torch.zeros(2, dtype=torch.float64, device=data.device)
    for batch in data.validation_batches():
        samples = objective.sample(batch.noise, batch.condition, sampler)
        difference = (samples.double() - batch.samples.double()).abs().mean()
        values = torch.stack([objective.distance(samples, batch).double(), difference])
        sums += values * (len(batch.noise) / data.validation_samples)
    objective.processes.add([sums])
    loss, l1 = sums.tolist()
    return Validation(iteration, loss, l1, rejected)


class StopRequest:
    """Notes SIGTERM or Ctrl-C in `signal` instead of ending the process; a second one ends it as usual."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        # Only the main thread can handle signals; in others nothing changes.
        if threading.current_thread() is threading.main_thread():
            numbers = (signal.SIGTERM, signal.SIGINT)
            self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


class Trainer:
    """Runs a learner to its end, also from a checkpoint.

    Whatever it writes is complete or absent, and depends on the settings alone: a run that is killed at any
    moment and resumed ends with the same bits as one that was not. `settings` are stored in checkpoints,
    `summary` in solver files. `first`, `last` and `best` are validations: before training, the latest, and
    the one with the smallest loss.
    """

    def __init__(
        self,
        learner: Learner,
        data: RunData,
        folder: Path,
        *,
        settings: Mapping[str, Any],
        summary: Mapping[str, Any],
        validate_every: int,
        checkpoint_every: int,
        pictures: Pictures | None,
        reporter: Reporter,
    ) -> None:
        self.learner = learner
        self.data = data
        self.folder = folder
        self.first: Validation | None = None
        self.last: Validation | None = None
        self.best: Validation | None = None
        self._settings, self._summary = dict(settings), dict(summary)
        self._validate_every, self._checkpoint_every = validate_every, checkpoint_every
        self._logs, self._pictures, self._reporter = Logs(), pictures, reporter
        self._processes = learner.objective.processes
        self._averaged = copy.deepcopy(learner.solver).requires_grad_(False)
        self._best_values = [value.clone() for value in learner.average]
        student = learner.objective.sampler
        self._sampler = GASSampler(
            self._averaged, student.denoiser, student.prediction_type, student.guidance_scale
        )

    def run(self, logs: Logs) -> int | None:
        """Run to the end; return the number of the signal that interrupted it, or None.

        RuntimeError if too many iterations in a row are not finite, after a checkpoint of the last good
        parameters.
        """
        self._logs = logs
        learner, config = self.learner, self.learner.config
        denoiser = learner.objective.sampler.denoiser
        device = learner.solver.time_offsets.device
        task = self._reporter.task("Learning a solver", config.iterations - learner.iteration)
        with learning_through(denoiser, device), StopRequest() as stop, task as advance:
            if self.last is None:
                self._validate()
                self._save()
            while not self._done:
                self._iterate()
                advance(1, note=self._note())
                stopped = self._processes.any(stop.signal is not None)
                if self._due(self._validate_every):
                    self._validate()
                failed = learner.in_a_row >= config.max_rejected
                if stopped or failed or self._due(self._checkpoint_every):
                    self._save()
                learner.check()
                if stopped and not self._done:
                    return stop.signal or signal.SIGTERM  # another process may have got it
        return None

    @property
    def _done(self) -> bool:
        return self.learner.iteration >= self.learner.config.iterations

    def _due(self, every: int) -> bool:
        return self._done or self.learner.iteration % every == 0

    def _iterate(self) -> None:
        start = time.perf_counter()
        numbers = self.learner.step(self.data.training_batch(self.learner.iteration))
        seconds = time.perf_counter() - start
        self._logs.write("train", self.learner.iteration, {**numbers, "seconds": seconds})

    def _note(self) -> str:
        validated = "" if self.last is None else f", validation L1 {self.last.l1:.4f}"
        return f"loss {self.learner.losses[-1]:.4f}{validated}"

    def _validate(self) -> None:
        """Validate the averaged solver, and save it if it is the best so far."""
        learner = self.learner
        assign(self._averaged, learner.average)
        learner.seed_global_generators("validation")
        result = validate(self._sampler, learner.objective, self.data, learner.iteration, learner.rejected)
        self.first, self.last = self.first or result, result
        if result.better_than(self.best):
            self.best = result
            self._best_values = [value.clone() for value in learner.average]
            self._write_solver(BEST, result)
        self._write_solver(LAST, result)
        self._logs.write("validation", learner.iteration, {"loss": result.loss, "l1": result.l1})
        if self._pictures is not None:
            self._pictures.draw(self._sampler, learner.objective, learner.iteration)

    def _write_solver(self, name: str, validation: Validation) -> None:
        """Write the averaged solver; nothing in the file depends on the clock."""
        if not self._processes.is_first:
            return
        losses = self.learner.losses[: validation.iteration]
        samples, config = self.data.train_samples, self.learner.config
        summary = TrainingSummary(losses, validation.rejected, 0.0, samples, config)
        result = {key: finite_or_none(value) for key, value in asdict(validation).items()}
        training = {**self._summary, **summary.to_dict(), "validation": result}
        self._averaged.save(self.folder / name, training=training)

    def _save(self) -> None:
        """Write a checkpoint of everything."""
        if not self._processes.is_first:
            return
        validations = {"first": self.first, "last": self.last, "best": self.best}
        state = {
            **self.learner.state_dict(),
            "best": {str(number): value for number, value in enumerate(self._best_values)},
            "validation": {name: asdict(v) for name, v in validations.items() if v is not None},
            "settings": self._settings,
        }
        save_checkpoint(self.folder / CHECKPOINTS, self.learner.iteration, state)

    def load(self, checkpoint: Checkpoint) -> None:
        """Resume from a checkpoint, and restore its best solver; ValueError if it is of another run."""
        state = checkpoint.state
        try:
            self.learner.load_state_dict(state)
            for number, value in enumerate(self._best_values):
                value.copy_(state["best"][str(number)])
            first, last, best = (Validation(**state["validation"][n]) for n in ("first", "last", "best"))
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = reason_of(error, 200)
            raise ValueError(
                f"{checkpoint.path} does not fit the run ({type(error).__name__}: {reason}); delete it, or "
                "start over with --no-resume."
            ) from error
        self.first, self.last, self.best = first, last, best
        assign(self._averaged, self._best_values)
        self._write_solver(BEST, best)
