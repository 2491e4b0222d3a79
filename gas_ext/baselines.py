"""Training-free solvers: what a learned solver starts from and has to beat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gas_ext.catalog import SPACING_TITLES, describe
from gas_ext.data import take
from gas_ext.denoisers import DenoiserFunction
from gas_ext.metrics import l1_distance
from gas_ext.sampler import GASSampler
from gas_ext.schedules import NoiseSchedule
from gas_ext.solver import GeneralizedSolver
from gas_ext.spacings import SPACINGS

ORDERS = (1, 2, 3)


@dataclass(frozen=True)
class Baseline:
    """DPM-Solver++ multistep of one order on one spacing, as an untrained solver.

    Parameters
    ----------
    order : int
        Order 1 to 3; the first steps use lower orders until there is a history.
    spacing : str
        A name of `gas_ext.spacings.SPACINGS`.
    solver : GeneralizedSolver
        The solver itself.
    """

    order: int
    spacing: str
    solver: GeneralizedSolver

    @property
    def description(self) -> str:
        """Human-readable name, such as "DPM-Solver++(2M), logSNR times"."""
        solver = describe(f"dpm++-{self.order}")["solver"]
        return f"{solver}, {SPACING_TITLES.get(self.spacing, self.spacing)} times"


def classical_solver(
    schedule: NoiseSchedule, steps: int, order: int, spacing: str, t_eps: float = 1e-3
) -> Baseline:
    """Build one training-free solver.

    Parameters
    ----------
    schedule : NoiseSchedule
        The noise schedule.
    steps : int
        Number of network evaluations, at least 1.
    order : int
        Order 1 to 3 of DPM-Solver++; with fewer steps than that, the order that is reached.
    spacing : str
        "uniform", "quadratic", "logsnr" or "edm".
    t_eps : float
        Last time.

    Examples
    --------
    >>> classical_solver(NoiseSchedule.vp_linear(), 4, 2, "logsnr").description
    'DPM-Solver++(2M), logSNR times'
    """
    solver = GeneralizedSolver(
        schedule, steps, order=min(order, steps), t_eps=t_eps, theory_order=order, timesteps=spacing
    )
    return Baseline(order, spacing, solver.requires_grad_(False))


def classical_solvers(
    schedule: NoiseSchedule,
    steps: int,
    t_eps: float = 1e-3,
    orders: Sequence[int] = ORDERS,
    spacings: Sequence[str] = SPACINGS,
) -> list[Baseline]:
    """Build every combination of order and spacing; orders that `steps` cannot reach are left out.

    Examples
    --------
    >>> schedule = NoiseSchedule.vp_linear()
    >>> len(classical_solvers(schedule, 4)), len(classical_solvers(schedule, 1))
    (12, 4)
    """
    reached = [order for order in orders if order <= steps]
    return [classical_solver(schedule, steps, order, name, t_eps) for name in spacings for order in reached]


@torch.no_grad()
def select_baseline(
    baselines: Sequence[Baseline],
    denoiser: DenoiserFunction,
    noise: Tensor,
    target: Tensor,
    condition: Any = None,
    *,
    prediction_type: str | None = None,
    guidance_scale: float | None = None,
    unconditional_condition: Any = None,
    batch_size: int = 32,
    progress: Callable[[Baseline, float], None] | None = None,
) -> tuple[Baseline, list[float]]:
    """Find the training-free solver nearest to the teacher.

    Parameters
    ----------
    baselines : sequence of Baseline
        The candidates, at least one.
    denoiser : callable
        As for `GASSampler`.
    noise, target : Tensor
        Initial noise and the teacher's samples from it, ``(samples, ...)``: training seeds, so that the
        choice is made without the seeds it is judged on.
    condition, prediction_type, guidance_scale, unconditional_condition
        As for `GASSampler`.
    batch_size : int
        Samples per network call.
    progress : callable, optional
        Called with each candidate and its distance.

    Returns
    -------
    (Baseline, list of float)
        The one with the smallest mean L1 distance, and the distances of all. NaN counts as infinite.
    """
    if not baselines:
        raise ValueError("there is no baseline to choose from: pass at least one")
    distances = []
    for baseline in baselines:
        baseline.solver.to(noise.device)
        sampler = GASSampler(baseline.solver, denoiser, prediction_type, guidance_scale)
        parts = [
            sampler(noise[part], take(condition, part), unconditional_condition)
            for part in (slice(i, i + batch_size) for i in range(0, len(noise), batch_size))
        ]
        distances.append(l1_distance(torch.cat(parts), target))
        if progress is not None:
            progress(baseline, distances[-1])
    ranked = [distance if distance == distance else float("inf") for distance in distances]
    return baselines[ranked.index(min(ranked))], distances
