"""Training a solver on tensors in memory, without files."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gas_ext._utils.checks import check_dense
from gas_ext._utils.modes import learning_through
from gas_ext._utils.noise import take
from gas_ext.denoisers import DenoiserFunction
from gas_ext.sampler import GASSampler
from gas_ext.samples import SampleBatch, ShuffledBatches
from gas_ext.solvers.generalized import GeneralizedSolver
from gas_ext.training.adversarial import Adversary
from gas_ext.training.learner import Learner, assign
from gas_ext.training.losses import Loss, get_loss
from gas_ext.training.objective import Objective
from gas_ext.training.settings import AUTOCAST, TrainingConfig, TrainingSummary

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
    adversary: Adversary | None = None,
    prediction_type: str | None = None,
    guidance_scale: float | None = None,
    unconditional_condition: Any = None,
    progress: Progress | None = None,
) -> TrainingSummary:
    """Train a solver in place to reproduce the teacher's samples, by back-propagating through the solve.

    Parameters
    ----------
    solver : GeneralizedSolver
        Trained in place; an exception leaves it unchanged. It also records the prediction type and the
        guidance scale it was trained for, and the summary, which are saved with it.
    denoiser : callable
        As for `GASSampler`; differentiable in x and t. The network's parameters get no gradient.
    noise, target : Tensor
        ``(samples, ...)``: initial noise (standard normal) and the teacher's sample from it.
    condition : tensor or tuple, list, dict of such, optional
        Conditions, first dimension `samples`.
    config : TrainingConfig, optional
        The settings; by default ``TrainingConfig()``.
    loss : callable, optional
        ``loss(prediction, target) -> scalar``, in place of ``config.loss``.
    adversary : Adversary, optional
        Discriminator and its optimizer, trained with the solver: GAS instead of GS.
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
        If noise and target differ in shape or are empty, if the condition has another number of samples, or
        if no gradient is possible: under `torch.no_grad`, or if no parameter requires one.
    RuntimeError
        If ``config.max_rejected`` iterations in a row have no finite loss and gradient.

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
    _check_types(solver, noise, target, config, loss, progress)
    if noise.shape != target.shape or noise.ndim == 0 or len(noise) == 0:
        raise ValueError(
            f"noise has shape {tuple(noise.shape)} and target {tuple(target.shape)}; expected one shape "
            "with at least one sample."
        )
    _check_condition(condition, len(noise))
    if not (torch.is_grad_enabled() and any(parameter.requires_grad for parameter in solver.parameters())):
        raise ValueError(
            "No parameter of the solver can get a gradient; call solver.requires_grad_() first, and train "
            "outside torch.no_grad()."
        )
    sampler = GASSampler(solver, denoiser, prediction_type, guidance_scale, recompute=config.recompute)
    objective = Objective(
        sampler,
        loss or get_loss(config.loss, noise.device),
        adversary=adversary,
        labels=adversary is not None and bool(adversary.discriminator.num_classes),
        unconditional_condition=unconditional_condition,
        autocast=AUTOCAST[config.autocast] if config.autocast else None,
    )
    learner = Learner(solver, objective, config)
    initial = [value.clone() for value in learner.average]
    order = ShuffledBatches(len(noise), config.batch_size, config.seed)
    start = time.perf_counter()
    try:
        with learning_through(denoiser, noise.device):
            for _ in range(config.iterations):
                index = next(order)
                learner.step(SampleBatch(noise[index], target[index], take(condition, index), None, None))
                learner.check()
                if progress is not None:
                    progress(learner.iteration, learner.losses[-1])
    except BaseException:
        assign(solver, initial)
        raise
    assign(solver, learner.average)
    solver.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - start
    summary = TrainingSummary(learner.losses, learner.rejected, seconds, len(noise), config)
    solver.prediction_type, solver.guidance_scale = sampler.prediction_type, sampler.guidance_scale
    solver.training_summary = summary.to_dict()
    return summary


def _check_types(
    solver: GeneralizedSolver,
    noise: Tensor,
    target: Tensor,
    config: TrainingConfig,
    loss: Loss | None,
    progress: Progress | None,
) -> None:
    for name, value, expected in (("solver", solver, GeneralizedSolver), ("config", config, TrainingConfig)):
        if not isinstance(value, expected):
            raise TypeError(f"{name} is a {type(value).__name__}, but must be a {expected.__name__}.")
    for name, tensor in (("noise", noise), ("target", target)):
        check_dense(name, tensor)
        if not tensor.is_floating_point():
            raise TypeError(f"{name} is {tensor.dtype}, but must be floating point; convert it.")
    for name, function in (("loss", loss), ("progress", progress)):
        if not (function is None or callable(function)):
            raise TypeError(f"{name} is {function!r}, but must be callable, or None.")


def _check_condition(condition: Any, samples: int) -> None:
    """Raise ValueError if a condition has another number of samples than the noise."""
    if isinstance(condition, Tensor):
        if condition.ndim == 0 or len(condition) != samples:
            raise ValueError(
                f"condition has shape {tuple(condition.shape)} for {samples} noise samples; expected one "
                "entry per sample."
            )
    elif isinstance(condition, Mapping):
        for value in condition.values():
            _check_condition(value, samples)
    elif isinstance(condition, list | tuple):
        for value in condition:
            _check_condition(value, samples)
