"""What a training is told, and what it says about itself afterwards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from gas_ext._utils.checks import flag, real_number, whole_number
from gas_ext._utils.distances import finite_or_none
from gas_ext.solvers.generalized import GeneralizedSolver
from gas_ext.training.losses import LOSS_NAMES
from gas_ext.training.optimizers import FullMatrixAdam

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of `train_solver`.

    The defaults are for a budget of minutes. The published recipe (paper, section 5) is ``optimizer="adam"``,
    ``betas=(0.9, 0.999)``, all rates 1e-3, ``schedule="constant"``, ``warmup=0``, ``ema=0.999``, ``clip=1.0``
    and 10,000 or more iterations.

    Parameters
    ----------
    iterations : int
        Number of gradient steps.
    batch_size : int
        Samples per step, over all processes; at most the number of training samples is used.
    time_rate, offset_rate, coefficient_rate : float
        Learning rates of the timestep logits, of the time offsets, and of both correction tables.
    scale_rates : bool
        Whether GS of many steps takes less of these rates, with "full_adam": (39 / P)^(1/2) where there are
        P > 39 numbers, the unused ones of the tables among them. That is 1 at 4 steps, .69 at 6, .42 at 10.
    optimizer : str
        "full_adam" (`gas_ext.training.optimizers.FullMatrixAdam`) or "adam".
    betas : (float, float)
        Decay of the optimizer's first and second moments.
    warmup : int
        Iterations over which the rates rise linearly.
    schedule : str
        "cosine" (to zero at the last iteration) or "constant", after the warm-up.
    loss : str
        A name of `gas_ext.training.losses.LOSS_NAMES`; `train_solver` takes a callable in its place.
    clip : float or None
        Largest norm of the gradient over all parameters.
    ema : float
        Decay of the running average of the parameters that is the result; 0 takes the last parameters.
    accumulation : int
        Parts into which each process's share of the batch is cut. One part is in memory at a time; for losses
        that are means over the batch, as all of `gas_ext.training.losses` are, the step is the same up to
        rounding.
    recompute : bool
        Evaluate the network again in the backward pass instead of keeping its activations; see `GASSampler`.
    autocast : str or None
        Precision of the network, "bfloat16" or "float16"; its own if None. Everything else keeps its own.
    max_rejected : int
        Iterations in a row without finite loss and gradient, all left out, before training gives up.
    seed : int
        Seed of everything random: the order of the samples and, in GAS, the fresh noise. What is drawn in an
        iteration follows from the seed and its number alone.
    """

    iterations: int = 300
    batch_size: int = 8
    time_rate: float = 2e-2
    offset_rate: float = 2e-2
    coefficient_rate: float = 2e-2
    scale_rates: bool = True
    optimizer: str = "full_adam"
    betas: tuple[float, float] = (0.9, 0.98)
    warmup: int = 20
    schedule: str = "cosine"
    loss: str = "l1"
    clip: float | None = None
    ema: float = 0.9
    accumulation: int = 1
    recompute: bool = False
    autocast: str | None = None
    max_rejected: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every value that has a range."""
        for name, low in (
            ("iterations", 1),
            ("batch_size", 1),
            ("warmup", 0),
            ("accumulation", 1),
            ("max_rejected", 1),
        ):
            if whole_number(name, getattr(self, name)) < low:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {low}")
        for name in ("time_rate", "offset_rate", "coefficient_rate"):
            if not 0 <= real_number(name, getattr(self, name)) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a finite number of at least 0")
        for name, choices in (
            ("optimizer", ("full_adam", "adam")),
            ("schedule", ("cosine", "constant")),
            ("loss", LOSS_NAMES),
            ("autocast", (None, *AUTOCAST)),
        ):
            if getattr(self, name) not in choices:
                expected = ", ".join(map(str, choices))
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {expected}")
        whole_number("seed", self.seed)
        for name in ("scale_rates", "recompute"):
            flag(name, getattr(self, name))
        if not isinstance(self.betas, Sequence) or not all(
            0 <= real_number("betas", b) < 1 for b in self.betas
        ):
            raise ValueError(f"betas is {self.betas!r}; expected two numbers in [0, 1)")
        if not 0 <= real_number("ema", self.ema) < 1:
            raise ValueError(f"ema is {self.ema}; expected a number in [0, 1)")
        if self.clip is not None and not real_number("clip", self.clip) > 0:
            raise ValueError(
                f"clip is {self.clip}; expected a number greater than 0, or None for no clipping"
            )

    def rate_factor(self, iteration: int) -> float:
        """Factor on all learning rates at `iteration`, counted from 0.

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
        """Return the optimizer of what a solver learns; each group's own rate is its ``base_lr``.

        Raises
        ------
        ValueError
            If there is nothing to learn, as no parameter requires a gradient or those that do are empty.
        """
        rates = (
            (self.time_rate, [solver.timestep_logits]),
            (self.offset_rate, [solver.time_offsets]),
            (self.coefficient_rate, [solver.data_corrections, solver.state_corrections]),
        )
        groups: list[dict[str, Any]] = []
        for rate, parameters in rates:
            learned = [parameter for parameter in parameters if parameter.requires_grad]
            if learned:
                groups.append({"params": learned, "lr": rate})
        count = sum(parameter.numel() for group in groups for parameter in group["params"])
        if count == 0:
            raise ValueError(
                f"A solver of kind {solver.kind} with {solver.steps} step(s) has nothing to learn; take more "
                "steps or another kind."
            )
        if self.optimizer == "adam":
            optimizer: torch.optim.Optimizer = torch.optim.Adam(groups, betas=self.betas)
        else:
            if self.scale_rates and solver.kind == "gs":
                groups = [{**group, "lr": _factor_of_many(count) * group["lr"]} for group in groups]
            # A first evaluation that is told less noise than there is (`warm_start.fit_start`) is worth much,
            # and lies in a narrow basin, which long steps leave for good.
            narrow = bool(solver.time_offsets.detach()[0] < 0)
            optimizer = FullMatrixAdam(groups, betas=self.betas, shrink=narrow)
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
        return optimizer


def _factor_of_many(count: int) -> float:
    """Return the factor on all rates for so many numbers; 1 for the 39 of GS of four steps.

    A rule that was found by trying, on the embedded teacher (docs/training.md): GS of 8 and 10 steps ends
    nearer to the teacher with it, S4S-Alt does not. `FullMatrixAdam` moves all numbers at once, each by about
    its rate.
    """
    return min(1.0, math.sqrt(39 / count))


@dataclass(frozen=True)
class TrainingSummary:
    """What a training did; ``to_dict()`` goes into the solver's file.

    Parameters
    ----------
    losses : list of float
        Loss of each iteration's batch, before the step; NaN where it was not finite.
    rejected : int
        Iterations in which a step was left out because loss or gradient was not finite.
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
        """Return what fits in a JSON header: settings and first and last losses, not the whole curve."""
        tail = self.losses[-max(len(self.losses) // 10, 1) :]
        return {
            "config": asdict(self.config),
            "samples": self.samples,
            "rejected": self.rejected,
            "first_loss": finite_or_none(self.losses[0]) if self.losses else None,
            "last_loss": finite_or_none(sum(tail) / len(tail)) if tail else None,
        }
