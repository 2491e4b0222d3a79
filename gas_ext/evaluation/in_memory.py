"""A few solvers judged side by side in memory, as the demo does; see `compare` for more than that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from gas_ext.denoisers import DenoiserFunction
from gas_ext.evaluation.metrics import (
    Statistics,
    StreamingStatistics,
    finite_or_none,
    frechet_distance,
    l1_distance,
)
from gas_ext.samples.draw import draw_samples
from gas_ext.solvers.coefficients import Solver


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
