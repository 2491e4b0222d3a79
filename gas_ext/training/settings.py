"""Settings of training and its summary."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from gas_ext._utils.distances import finite_or_none
from gas_ext.configs.base import Positive, sentence
from gas_ext.configs.training import Recipe
from gas_ext.solvers.generalized import GeneralizedSolver
from gas_ext.training.optimizers import FullMatrixAdam

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class TrainingConfig(Recipe):
    """Settings of `train_solver`: the fields of `gas_ext.configs.training.Recipe`, and the iterations.

    Parameters
    ----------
    iterations : int
        Number of gradient steps; 300 by default.

    Raises
    ------
    ValueError
        If a value has another type or is out of range.
    """

    iterations: Positive = 300

    def __init__(self, **settings: Any) -> None:
        try:
            plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in settings.items()}
            super().__init__(**plain)
        except ValidationError as error:
            raise ValueError(sentence(error.errors()[0])) from error

    def rate_factor(self, iteration: int) -> float:
        """Return the factor on all learning rates at an iteration, counted from 0.

        Examples
        --------
        >>> [TrainingConfig(iterations=4, warmup=2).rate_factor(i) for i in (0, 1, 2)]
        [0.5, 1.0, 1.0]
        """
        if iteration < self.warmup:
            return (iteration + 1) / self.warmup
        if self.schedule == "constant":
            return 1.0
        done = (iteration - self.warmup) / max(self.iterations - self.warmup, 1)
        return 0.5 * (1.0 + math.cos(math.pi * done))

    def make_optimizer(self, solver: GeneralizedSolver) -> torch.optim.Optimizer:
        """Return the optimizer of a solver's learned parameters; ``base_lr`` is each group's own rate.

        ValueError if no parameter requires a gradient, or those that do are empty.
        """
        rates = (
            (self.time_rate, [solver.timestep_logits]),
            (self.offset_rate, [solver.time_offsets]),
            (self.coefficient_rate, [solver.data_corrections, solver.state_corrections]),
        )
        groups: list[dict[str, Any]] = [
            {"params": learned, "lr": rate}
            for rate, parameters in rates
            if (learned := [parameter for parameter in parameters if parameter.requires_grad])
        ]
        count = sum(parameter.numel() for group in groups for parameter in group["params"])
        if count == 0:
            raise ValueError(
                f"A solver with preset {solver.preset} and {solver.steps} step(s) has nothing to learn; use "
                "more steps or another preset."
            )
        if self.optimizer == "adam":
            optimizer: torch.optim.Optimizer = torch.optim.Adam(groups, betas=self.betas)
        else:
            if self.scale_rates and solver.preset == "gs":
                groups = [{**group, "lr": _rate_scale(count) * group["lr"]} for group in groups]
            # A first evaluation at a lower noise level (`warm_start.fit_start`) is worth much, but lies in a
            # narrow basin, which long steps leave for good.
            narrow = bool(solver.time_offsets.detach()[0] < 0)
            optimizer = FullMatrixAdam(groups, betas=self.betas, shrink=narrow)
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
        return optimizer


def _rate_scale(count: int) -> float:
    """Return the factor on all rates for this many parameters; 1 for the 39 of GS with four steps.

    An empirical rule from the embedded teacher (docs/training.md): GS with 8 and 10 steps ends closer to the
    teacher with it, S4S-Alt does not. `FullMatrixAdam` moves every parameter by about its rate.
    """
    return min(1.0, math.sqrt(39 / count))


@dataclass(frozen=True)
class TrainingSummary:
    """What a training did; ``to_dict()`` is stored in the solver's file.

    Parameters
    ----------
    losses : list of float
        Loss of each iteration's batch, before the step; NaN where it was not finite.
    rejected : int
        Iterations that were skipped because loss or gradient was not finite.
    seconds : float
        Wall-clock time.
    samples : int
        Number of training samples.
    config : TrainingConfig
        The settings.
    """

    losses: list[float]
    rejected: int
    seconds: float
    samples: int
    config: TrainingConfig = field(default_factory=TrainingConfig)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a JSON header: settings, and first and last losses instead of the curve."""
        tail = self.losses[-max(len(self.losses) // 10, 1) :]
        return {
            "config": self.config.model_dump(),
            "samples": self.samples,
            "rejected": self.rejected,
            "first_loss": finite_or_none(self.losses[0]) if self.losses else None,
            "last_loss": finite_or_none(sum(tail) / len(tail)) if tail else None,
        }
