"""The loop of a run: iterations, validation, pictures, logs and checkpoints, until done or told to stop."""

from __future__ import annotations

import copy
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gas_ext._utils.distances import finite_or_none
from gas_ext._utils.modes import learning_through
from gas_ext._utils.progress import Reporter, SilentReporter
from gas_ext._utils.records import reason_of
from gas_ext.sampler import GASSampler
from gas_ext.training.checkpoints import Checkpoint, save_checkpoint
from gas_ext.training.data import RunData
from gas_ext.training.folder import BEST, CHECKPOINTS, LAST
from gas_ext.training.learner import Learner, assign
from gas_ext.training.logs import Logs
from gas_ext.training.pictures import Pictures
from gas_ext.training.settings import TrainingSummary
from gas_ext.training.stopping import StopRequest
from gas_ext.training.validation import Validation, validate


class Trainer:
    """Runs a learner to its end, or from where a checkpoint left it.

    Whatever it writes is complete or absent, and follows from the settings alone: a run that is killed at any
    moment and resumed ends with the same bits as one that was not.

    Parameters
    ----------
    learner : Learner
        What learns.
    data : RunData
        Its samples.
    folder : Path
        Where solvers and checkpoints go.
    settings : mapping
        What the run depends on, kept in its checkpoints.
    summary : mapping
        What the solvers' files say about their training, besides losses and validation.
    validate_every, checkpoint_every : int
        Iterations from one validation, or checkpoint, to the next.
    pictures, reporter
        Of the first process; the others have none.

    Attributes
    ----------
    first, last, best : Validation or None
        Before training, the latest, and the one with the smallest loss.
    """

    def __init__(
        self,
        learner: Learner,
        data: RunData,
        folder: Path,
        *,
        settings: Mapping[str, Any],
        summary: Mapping[str, Any],
        validate_every: int = 100,
        checkpoint_every: int = 100,
        pictures: Pictures | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        self.learner = learner
        self.data = data
        self.folder = folder
        self.first: Validation | None = None
        self.last: Validation | None = None
        self.best: Validation | None = None
        self._settings, self._about = dict(settings), dict(summary)
        self._validate_every, self._checkpoint_every = validate_every, checkpoint_every
        self._logs, self._pictures = Logs(), pictures
        self._reporter = reporter or SilentReporter()
        self._processes = learner.objective.processes
        self._judged = copy.deepcopy(learner.solver).requires_grad_(False)  # holds the average
        self._best_values = [value.clone() for value in learner.average]
        own = learner.objective.sampler
        self._sampler = GASSampler(self._judged, own.denoiser, own.prediction_type, own.guidance_scale)

    @property
    def done(self) -> bool:
        """Whether all iterations have been made."""
        return self.learner.iteration >= self.learner.config.iterations

    def run(self, logs: Logs | None = None) -> int | None:
        """Go on to the end; return the number of the signal that ended it before, or None.

        Parameters
        ----------
        logs : Logs
            Where numbers are written.

        Raises
        ------
        RuntimeError
            If nothing is finite any more; a checkpoint of the last good parameters has been saved.
        """
        self._logs = logs or Logs()
        learner, config = self.learner, self.learner.config
        denoiser = learner.objective.sampler.denoiser
        device = learner.solver.time_offsets.device
        left = config.iterations - learner.iteration
        task = self._reporter.task("Learning a solver", left)
        with learning_through(denoiser, device), StopRequest() as stop, task as advance:
            if self.last is None:
                self._validate()
                self._save()
            while not self.done:
                self._iterate()
                advance(1, note=self._note())
                stopped = self._processes.any(stop.signal is not None)
                if self._due(self._validate_every):
                    self._validate()
                failed = learner.in_a_row >= config.max_rejected
                if stopped or failed or self._due(self._checkpoint_every):
                    self._save()
                learner.check()
                if stopped and not self.done:
                    return stop.signal or signal.SIGTERM  # which another process may have got
        return None

    def _iterate(self) -> None:
        start = time.perf_counter()
        batch = self.data.training_batch(self.learner.iteration)
        numbers = self.learner.step(batch)
        seconds = time.perf_counter() - start
        self._logs.write("train", self.learner.iteration, {**numbers, "seconds": seconds})

    def _note(self) -> str:
        validated = "" if self.last is None else f", validation L1 {self.last.l1:.4f}"
        return f"loss {self.learner.losses[-1]:.4f}{validated}"

    def _due(self, every: int) -> bool:
        return self.done or self.learner.iteration % every == 0

    def _validate(self) -> None:
        """Judge the averaged solver, and keep it if it is the best so far."""
        learner = self.learner
        learner.average_into(self._judged)
        learner.seed_global_generators("validation")
        found = validate(self._sampler, learner.objective, self.data, learner.iteration, learner.rejected)
        self.first, self.last = self.first or found, found
        if found.better_than(self.best):
            self.best = found
            self._best_values = [value.clone() for value in learner.average]
            self._write_best()
        self._write_solver(LAST, found)
        self._logs.write("validation", learner.iteration, {"loss": found.loss, "l1": found.l1})
        if self._pictures is not None and self._processes.is_first:
            self._pictures.draw(self._sampler, learner.objective, learner.iteration)

    def _write_best(self) -> None:
        assert self.best is not None
        assign(self._judged, self._best_values)
        self._write_solver(BEST, self.best)

    def _write_solver(self, name: str, found: Validation) -> None:
        """Write the solver that was judged; nothing in the file depends on the clock."""
        if not self._processes.is_first:
            return
        losses = self.learner.losses[: found.iteration]
        summary = TrainingSummary(losses, found.rejected, 0.0, self.data.train_samples, self.learner.config)
        validation = {name: finite_or_none(value) for name, value in asdict(found).items()}
        training = {**self._about, **summary.to_dict(), "validation": validation}
        self._judged.save(self.folder / name, training=training)

    def _save(self) -> None:
        """Write a checkpoint of everything."""
        if not self._processes.is_first:
            return
        state = {
            **self.learner.state_dict(),
            "best": {str(number): value for number, value in enumerate(self._best_values)},
            "validation": {name: asdict(v) for name, v in self._validations() if v is not None},
            "settings": self._settings,
        }
        save_checkpoint(self.folder / CHECKPOINTS, self.learner.iteration, state)

    def _validations(self) -> list[tuple[str, Validation | None]]:
        return [("first", self.first), ("last", self.last), ("best", self.best)]

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on where a checkpoint was written, and put the best solver of that moment in place.

        Raises
        ------
        ValueError
            If the checkpoint is that of another solver, optimizer or adversary.
        """
        state = checkpoint.state
        try:
            self.learner.load_state_dict(state)
            for number, value in enumerate(self._best_values):
                value.copy_(state["best"][str(number)])
            for name in ("first", "last", "best"):
                setattr(self, name, Validation(**state["validation"][name]))
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = reason_of(error, 200)
            raise ValueError(
                f"{checkpoint.path} does not fit the run ({type(error).__name__}: {reason}); delete it, or "
                "start over with --no-resume."
            ) from error
        self._write_best()
