"""Solvers judged side by side on held-out seeds: network evaluations, distances, time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from gas_ext.data import take
from gas_ext.denoisers import DenoiserFunction
from gas_ext.metrics import Statistics, StreamingStatistics, finite_or_none, frechet_distance, l1_distance
from gas_ext.sampler import GASSampler, Solver


@dataclass(frozen=True)
class Row:
    """One line of a comparison.

    Parameters
    ----------
    solver : str
        Short name, such as "teacher", "classical" or "learned".
    description : str
        What it is, for people.
    nfe : int
        Network evaluations per sample, counted while sampling. One call on the doubled batch of
        classifier-free guidance counts once.
    l1_to_teacher : float
        Mean absolute difference to the teacher's samples from the same noise; NaN if a sample is not finite.
    frechet_to_teacher, frechet_to_data : float or None
        Frechet distances to reference statistics; None without a feature extractor, and if the features of
        the samples are not finite.
    ms_per_image : float
        Wall-clock milliseconds per sample: median over full batches, after one warm-up batch.
    """

    solver: str
    description: str
    nfe: int
    l1_to_teacher: float
    frechet_to_teacher: float | None
    frechet_to_data: float | None
    ms_per_image: float

    def to_dict(self) -> dict[str, Any]:
        """Return the row as it stands in results.json, where a distance that is not finite is None."""
        return {**asdict(self), "l1_to_teacher": finite_or_none(self.l1_to_teacher)}


@dataclass(frozen=True)
class Contestant:
    """A solver to be judged, with its names for the table."""

    name: str
    description: str
    solver: Solver


@dataclass(frozen=True)
class References:
    """What Frechet distances are measured with and to.

    Parameters
    ----------
    features : callable
        Maps samples ``(B, ...)`` to feature vectors ``(B, F)``.
    teacher, data : Statistics or (mean, covariance, count)
        Moments of the features of teacher samples and of real data.
    """

    features: Callable[[Tensor], Tensor]
    teacher: Statistics | tuple[Tensor, Tensor, int]
    data: Statistics | tuple[Tensor, Tensor, int]


@dataclass(frozen=True)
class SampleRun:
    """Samples of one solver, the counted network evaluations per sample, and the time of each full batch."""

    samples: Tensor
    nfe: int
    ms_per_image: float


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
    """Sample in batches, counting network calls and taking the time.

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
    batch_size : int
        Samples per network call.
    warm_up : bool
        Sample the first batch once before, so that first-call costs stay out of the times.
    progress : callable, optional
        Called with the number of samples after each batch.

    Returns
    -------
    SampleRun
    """
    if len(noise) == 0:
        raise ValueError("there is no noise to sample from: pass at least one seed")
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
    return SampleRun(torch.cat(parts), sampler.evaluations // len(batches), statistics.median(times))


def _now(device: torch.device) -> float:
    """Wall clock in seconds, once the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def evaluate(
    contestants: Sequence[Contestant],
    denoiser: DenoiserFunction,
    noise: Tensor,
    target: Tensor | None = None,
    condition: Any = None,
    *,
    references: References | None = None,
    prediction_type: str | None = None,
    guidance_scale: float | None = None,
    unconditional_condition: Any = None,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> tuple[list[Row], list[Tensor]]:
    """Judge solvers on the same held-out noise.

    Parameters
    ----------
    contestants : sequence of Contestant
        The solvers with their names.
    denoiser : callable
        As for `GASSampler`; shared by all.
    noise : Tensor
        Held-out noise, ``(samples, ...)``.
    target : Tensor, optional
        The teacher's samples from it; if not given, the first contestant is the teacher.
    references : References, optional
        Feature extractor and reference statistics for the Frechet distances.
    condition, prediction_type, guidance_scale, unconditional_condition
        As for `GASSampler`.
    batch_size : int
        Samples per network call.
    progress : callable, optional
        Called with the number of samples after each batch.

    Returns
    -------
    (list of Row, list of Tensor)
        One row and one batch of samples per contestant.
    """
    rows, samples = [], []
    for contestant in contestants:
        run = draw_samples(
            contestant.solver,
            denoiser,
            noise,
            condition,
            prediction_type=prediction_type,
            guidance_scale=guidance_scale,
            unconditional_condition=unconditional_condition,
            batch_size=batch_size,
            warm_up=True,
            progress=progress,
        )
        target = run.samples if target is None else target
        to_teacher, to_data = _frechet(run.samples, references, batch_size)
        rows.append(
            Row(
                contestant.name,
                contestant.description,
                run.nfe,
                l1_distance(run.samples, target),
                to_teacher,
                to_data,
                run.ms_per_image,
            )
        )
        samples.append(run.samples)
    return rows, samples


@torch.no_grad()
def _frechet(
    samples: Tensor, references: References | None, batch_size: int
) -> tuple[float | None, float | None]:
    """Distances of the samples' features to both reference statistics."""
    if references is None:
        return None, None
    stream = StreamingStatistics()
    for start in range(0, len(samples), batch_size):
        stream.update(references.features(samples[start : start + batch_size]))
    mean, covariance, _ = stream.result()
    if not bool(torch.isfinite(mean).all() and torch.isfinite(covariance).all()):
        return None, None  # one solver that diverged must not cost the whole table
    teacher, data = references.teacher, references.data
    return (
        frechet_distance(mean, covariance, teacher[0], teacher[1]),
        frechet_distance(mean, covariance, data[0], data[1]),
    )
