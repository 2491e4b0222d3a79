"""Learning a solver: gradient descent on its numbers, through the whole solve (GS, arXiv 2510.17699).

The target is the teacher's sample from the same noise. Nothing of the network is trained.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gas_ext.data import take
from gas_ext.denoisers import DenoiserFunction
from gas_ext.losses import LOSSES, Loss, get_loss
from gas_ext.metrics import finite_or_none
from gas_ext.optimizers import FullMatrixAdam
from gas_ext.sampler import GASSampler
from gas_ext.solver import GeneralizedSolver

_MAX_REJECTED = 10  # iterations in a row without finite loss and gradient before training gives up


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of `train_solver`.

    The defaults are for a budget of minutes. The published recipe (paper, section 5) is ``optimizer="adam"``,
    all rates 1e-3, ``schedule="constant"``, ``warmup=0``, ``ema=0.999`` and 10,000 or more iterations.

    Parameters
    ----------
    iterations : int
        Number of gradient steps.
    batch_size : int
        Samples per step; at most the number of training samples is used.
    time_rate, offset_rate, coefficient_rate : float
        Learning rates of the timestep logits, of the time offsets, and of both correction tables.
    optimizer : str
        "full_adam" (`gas_ext.optimizers.FullMatrixAdam`) or "adam".
    betas : (float, float)
        Decay of the optimizer's first and second moments.
    warmup : int
        Iterations over which the rates rise linearly.
    schedule : str
        "cosine" (to zero at the last iteration) or "constant", after the warm-up.
    loss : str
        "l1", "l2" or "huber"; `train_solver` takes a callable in its place.
    clip : float or None
        Largest norm of the gradient over all parameters.
    ema : float
        Decay of the running average of the parameters that is the result; 0 takes the last parameters.
    seed : int
        Seed of the order in which samples are drawn.
    """

    iterations: int = 300
    batch_size: int = 8
    time_rate: float = 2e-2
    offset_rate: float = 2e-2
    coefficient_rate: float = 2e-2
    optimizer: str = "full_adam"
    betas: tuple[float, float] = (0.9, 0.98)
    warmup: int = 20
    schedule: str = "cosine"
    loss: str = "l1"
    clip: float | None = None
    ema: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every value that has a range."""
        for name, low in (("iterations", 1), ("batch_size", 1), ("warmup", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {low}")
        for name in ("time_rate", "offset_rate", "coefficient_rate"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} is {getattr(self, name)}; expected a finite number of at least 0")
        for name, choices in (
            ("optimizer", ("full_adam", "adam")),
            ("schedule", ("cosine", "constant")),
            ("loss", tuple(LOSSES)),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(choices)}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}; expected a number in [0, 1)")
        if self.clip is not None and not self.clip > 0:
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


@dataclass(frozen=True)
class TrainingSummary:
    """What a training run did; ``to_dict()`` goes into the solver's file.

    Parameters
    ----------
    losses : list of float
        Loss of each iteration's batch, before the step; NaN where it was not finite.
    rejected : int
        Iterations skipped because loss or gradient was not finite.
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
            "first_loss": finite_or_none(self.losses[0]),
            "last_loss": finite_or_none(sum(tail) / len(tail)),
        }


Progress = Callable[[int, float], None]  # iteration, counted from 1, and its loss


def train_solver(
    solver: GeneralizedSolver,
    denoiser: DenoiserFunction,
    noise: Tensor,
    target: Tensor,
    condition: Any = None,
    *,
    config: TrainingConfig | None = None,
    loss: Loss | None = None,
    prediction_type: str | None = None,
    guidance_scale: float | None = None,
    unconditional_condition: Any = None,
    progress: Progress | None = None,
) -> TrainingSummary:
    """Fit a solver's numbers to the teacher's samples, in place, by back-propagating through the solve.

    Parameters
    ----------
    solver : GeneralizedSolver
        Trained in place; on an exception it is left as it was. It also records the prediction type and the
        guidance scale it was trained for, and the summary, so that its file says them.
    denoiser : callable
        As for `GASSampler`; differentiable in x and t. The network's parameters get no gradient.
    noise, target : Tensor
        Shape ``(samples, ...)``: initial noise (standard normal) and the teacher's sample from it.
    condition : tensor or tuple, list, dict of such, optional
        Conditions, first dimension `samples`.
    config : TrainingConfig, optional
        The settings.
    loss : callable, optional
        ``loss(prediction, target) -> scalar``, in place of ``config.loss``.
    prediction_type, guidance_scale, unconditional_condition
        As for `GASSampler`.
    progress : callable, optional
        Called after each iteration with its number, from 1, and its loss.

    Returns
    -------
    TrainingSummary
        Loss curve, seconds and settings. The same inputs and settings give the same solver, bit for bit.

    Raises
    ------
    ValueError
        If noise and target differ in shape or hold no sample, if the condition has another number of
        samples, or if there is nothing to learn: under `torch.no_grad`, or without a parameter that requires
        a gradient.
    RuntimeError
        If ten iterations in a row have no finite loss and gradient.

    Examples
    --------
    >>> from gas_ext import NoiseSchedule
    >>> solver = GeneralizedSolver(NoiseSchedule.vp_linear(), steps=2)
    >>> noise = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    >>> summary = train_solver(solver, lambda x, t, condition: torch.tanh(x), noise, 0.5 * noise.tanh(),
    ...                        config=TrainingConfig(iterations=20))
    >>> summary.losses[-1] < summary.losses[0]
    True
    """
    config = config or TrainingConfig()
    if noise.shape != target.shape or len(noise) == 0:
        raise ValueError(
            f"noise has shape {tuple(noise.shape)} and target {tuple(target.shape)}; expected one shape "
            "with at least one sample"
        )
    _check_condition(condition, len(noise))
    wanted = [parameter for parameter in solver.parameters() if parameter.requires_grad]
    if not (wanted and torch.is_grad_enabled()):
        raise ValueError(
            "there is nothing to learn, as gradients are off: call solver.requires_grad_() first, and train "
            "outside torch.no_grad()"
        )
    distance = loss or get_loss(config.loss)
    sampler = GASSampler(solver, denoiser, prediction_type, guidance_scale)
    optimizer = _make_optimizer(solver, config)
    average = [p.detach().clone() for p in solver.parameters()]
    initial = [value.clone() for value in average]
    losses: list[float] = []
    rejected = in_a_row = 0
    start = time.perf_counter()
    try:
        with _frozen(denoiser):
            for iteration, index in enumerate(_batches(len(noise), config)):
                samples = sampler(noise[index], take(condition, index), unconditional_condition)
                value = distance(samples, target[index])
                # Not backward(): a network inside a closure would gather gradients of its own.
                gradients = torch.autograd.grad(value, wanted, allow_unused=True)
                for parameter, gradient in zip(wanted, gradients, strict=True):
                    parameter.grad = None if gradient is None else gradient.clone()
                losses.append(value.item())
                if _step(solver, optimizer, config, iteration, losses[-1]):
                    in_a_row = 0
                else:
                    rejected, in_a_row = rejected + 1, in_a_row + 1
                if in_a_row == _MAX_REJECTED:
                    raise RuntimeError(
                        f"loss or gradient was not finite in {in_a_row} iterations in a row: check "
                        "the teacher's samples, or lower the learning rates"
                    )
                _update_average(average, solver, config.ema, iteration)
                if progress is not None:
                    progress(iteration + 1, losses[-1])
    except BaseException:
        _assign(solver, initial)
        raise
    _assign(solver, average)
    solver.zero_grad(set_to_none=True)
    summary = TrainingSummary(losses, rejected, time.perf_counter() - start, len(noise), config)
    solver.prediction_type, solver.guidance_scale = sampler.prediction_type, sampler.guidance_scale
    solver.training_summary = summary.to_dict()
    return summary


def _check_condition(condition: Any, samples: int) -> None:
    """Refuse a condition with another number of samples than the noise."""
    if isinstance(condition, Tensor):
        if condition.ndim == 0 or len(condition) != samples:
            raise ValueError(
                f"condition has shape {tuple(condition.shape)} for {samples} noise samples; expected one "
                "entry per sample"
            )
    elif isinstance(condition, Mapping):
        for value in condition.values():
            _check_condition(value, samples)
    elif isinstance(condition, list | tuple):
        for value in condition:
            _check_condition(value, samples)


def _make_optimizer(solver: GeneralizedSolver, config: TrainingConfig) -> torch.optim.Optimizer:
    groups = [
        {"params": [solver.timestep_logits], "lr": config.time_rate},
        {"params": [solver.time_offsets], "lr": config.offset_rate},
        {"params": [solver.data_corrections, solver.state_corrections], "lr": config.coefficient_rate},
    ]
    if config.optimizer == "adam":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(groups, betas=config.betas)
    else:
        optimizer = FullMatrixAdam(groups, betas=config.betas)
    for group in optimizer.param_groups:
        group["base_lr"] = group["lr"]
    return optimizer


def _step(
    solver: GeneralizedSolver,
    optimizer: torch.optim.Optimizer,
    config: TrainingConfig,
    iteration: int,
    loss: float,
) -> bool:
    """Make one step unless loss or gradient is not finite; return whether it was made."""
    limit = math.inf if config.clip is None else config.clip
    norm = torch.nn.utils.clip_grad_norm_(solver.parameters(), limit)
    if not (math.isfinite(loss) and bool(torch.isfinite(norm))):
        return False
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * config.rate_factor(iteration)
    optimizer.step()
    return True


@torch.no_grad()
def _update_average(average: list[Tensor], solver: GeneralizedSolver, ema: float, iteration: int) -> None:
    """Average the parameters; early on over all iterations so far, so that the start is soon forgotten."""
    decay = min(ema, (iteration + 1) / (iteration + 10))
    for value, parameter in zip(average, solver.parameters(), strict=True):
        value.lerp_(parameter, 1 - decay if ema else 1.0)


@torch.no_grad()
def _assign(solver: GeneralizedSolver, values: list[Tensor]) -> None:
    for parameter, value in zip(solver.parameters(), values, strict=True):
        parameter.copy_(value)


def _batches(samples: int, config: TrainingConfig) -> Iterator[Tensor]:
    """Yield `iterations` index batches: shuffled passes over the samples, whole batches only."""
    generator = torch.Generator().manual_seed(config.seed)
    size = min(config.batch_size, samples)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(config.iterations):
        if len(order) < size:
            order = torch.randperm(samples, generator=generator)
        yield order[:size]
        order = order[size:]


@contextmanager
def _frozen(denoiser: DenoiserFunction) -> Iterator[None]:
    """Take a module's own parameters out of the graph while a solver is trained, for speed."""
    parameters = list(denoiser.parameters()) if isinstance(denoiser, nn.Module) else []
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
