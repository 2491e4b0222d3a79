"""Samples of one solver in memory, with their number of network evaluations and wall time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gas_ext._utils.noise import take
from gas_ext.denoisers import DenoiserFunction
from gas_ext.sampler import GASSampler
from gas_ext.solvers.coefficients import Solver


@dataclass(frozen=True)
class SampleRun:
    """Samples of one solver, the counted network evaluations per sample, and the times of the batches.

    `times` has the milliseconds per sample of each batch. The last batch is not timed if it is smaller than
    the others.
    """

    samples: Tensor
    nfe: int
    times: list[float]

    @property
    def ms_per_image(self) -> float:
        """Wall time per sample in milliseconds: the median over the batches."""
        return statistics.median(self.times)


@torch.no_grad()
def draw_samples(
    solver: Solver,
    denoiser: DenoiserFunction,
    noise: Tensor,
    condition: Any = None,
    *,
    prediction_type: str | None = None,
    guidance_scale: float | None = None,
    unconditional_condition: Any = None,
    batch_size: int = 32,
    warm_up: bool = False,
    progress: Callable[[int], None] | None = None,
) -> SampleRun:
    """Sample in batches, counting network evaluations and measuring wall time.

    Parameters
    ----------
    solver : GeneralizedSolver or MultistepSolver
        The solver, on the noise's device.
    denoiser : callable
        As for `GASSampler`.
    noise : Tensor
        ``(samples, ...)``, at least one sample.
    condition, prediction_type, guidance_scale, unconditional_condition
        As for `GASSampler`.
    batch_size : int, default 32
        Samples per network call.
    warm_up : bool, default False
        Sample the first batch once in advance, which keeps the cost of first calls out of the times.
    progress : callable, optional
        Called with the number of samples after each batch.
    """
    if len(noise) == 0:
        raise ValueError("There is no noise to sample from; pass at least one seed.")
    sampler = GASSampler(solver, denoiser, prediction_type, guidance_scale)
    batches = [slice(i, min(i + batch_size, len(noise))) for i in range(0, len(noise), batch_size)]
    if warm_up:
        sampler(noise[batches[0]], take(condition, batches[0]), unconditional_condition)
    sampler.evaluations = 0
    parts, times = [], []
    for batch in batches:
        start = _now(noise.device)
        parts.append(sampler(noise[batch], take(condition, batch), unconditional_condition))
        if batch.stop - batch.start == batches[0].stop:  # full batches only
            times.append((_now(noise.device) - start) * 1e3 / batches[0].stop)
        if progress is not None:
            progress(batch.stop - batch.start)
    return SampleRun(torch.cat(parts), sampler.evaluations // len(batches), times)


def _now(device: torch.device) -> float:
    """Return the wall clock in seconds, once the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
