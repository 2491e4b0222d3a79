"""Training-free solvers: the start of a learned solver, and the baselines it is compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gas_ext._utils.distances import l1_distance
from gas_ext.denoisers import DenoiserFunction
from gas_ext.samples.draw import draw_samples
from gas_ext.schedules import NoiseSchedule
from gas_ext.solvers.generalized import GeneralizedSolver
from gas_ext.solvers.registry import build_solver, display_name
from gas_ext.solvers.timesteps import SPACINGS

ORDERS = (1, 2, 3)
FAMILIES = {
    "DDIM": ("ddim",),
    "DPM-Solver++": ("dpm++-2", "dpm++-3"),
    "UniPC": ("unipc-1-bh1", "unipc-1", "unipc-2-bh1", "unipc-2", "unipc-3-bh1", "unipc-3"),
    "DEIS": ("deis-1", "deis-2", "deis-3"),
    "iPNDM": ("ipndm-2", "ipndm-3", "ipndm-4"),
    "Heun": ("heun",),
}
"""The useful training-free solvers of `gas_ext.solvers.registry`, by family."""


@dataclass(frozen=True)
class Baseline:
    """A training-free solver and its name in `gas_ext.solvers.registry`, such as "unipc-2-bh1@quadratic"."""

    name: str
    solver: Any

    @property
    def description(self) -> str:
        """Human-readable name, such as "DPM-Solver++(2M), logSNR times"."""
        return display_name(self.name)

    @property
    def order(self) -> int:
        """Order that the name states; the first steps use lower orders until there is a history."""
        family = self.name.partition("@")[0]
        numbers = [int(part) for part in family.split("-")[1:2]]
        return numbers[0] if numbers else {"ddim": 1}.get(family, 2)  # Heun's method has order 2

    @property
    def spacing(self) -> str:
        """Spacing of the times, a name of `gas_ext.solvers.timesteps.SPACINGS`."""
        return self.name.partition("@")[2]


def classical_solver(
    schedule: NoiseSchedule, steps: int, order: int, spacing: str, t_eps: float = 1e-3
) -> Baseline:
    """Build a DPM-Solver++ multistep solver as a `GeneralizedSolver`.

    Parameters
    ----------
    schedule : NoiseSchedule
        The noise schedule.
    steps : int
        Number of network evaluations, at least 1.
    order : int
        Order 1 to 3; with fewer steps, the order is not reached.
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
    return Baseline(f"dpm++-{order}@{spacing}", solver.requires_grad_(False))


def classical_solvers(
    schedule: NoiseSchedule,
    steps: int,
    t_eps: float = 1e-3,
    orders: Sequence[int] = ORDERS,
    spacings: Sequence[str] = SPACINGS,
) -> list[Baseline]:
    """Build a DPM-Solver++ for every spacing and every order up to `steps`.

    Examples
    --------
    >>> schedule = NoiseSchedule.vp_linear()
    >>> len(classical_solvers(schedule, 4)), len(classical_solvers(schedule, 1))
    (12, 4)
    """
    reached = [order for order in orders if order <= steps]
    return [classical_solver(schedule, steps, order, name, t_eps) for name in spacings for order in reached]


def family_names(family: str, spacings: Sequence[str] = SPACINGS) -> list[str]:
    """Return the names of a family's solvers at all spacings.

    Examples
    --------
    >>> family_names("DDIM")
    ['ddim@uniform', 'ddim@quadratic', 'ddim@logsnr', 'ddim@edm']
    """
    return [f"{solver}@{spacing}" for solver in FAMILIES[family] for spacing in spacings]


def named_baselines(
    schedule: NoiseSchedule, steps: int, t_eps: float = 1e-3, families: Sequence[str] = tuple(FAMILIES)
) -> list[Baseline]:
    """Build every solver of some `FAMILIES` at every spacing; Heun's needs at least two evaluations.

    ValueError if the schedule has alpha(1) = 0 and a family steps in lambda.

    Examples
    --------
    >>> schedule = NoiseSchedule.vp_linear()
    >>> baselines = named_baselines(schedule, 4)
    >>> len(baselines), len(named_baselines(schedule, 1)), baselines[0].description
    (64, 60, 'DDIM, uniform times')
    """
    names = [name for family in families for name in family_names(family) if family != "Heun" or steps > 1]
    return [Baseline(name, build_solver(name, schedule, steps, t_eps)) for name in names]


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
    """Find the training-free solver closest to the teacher.

    Parameters
    ----------
    baselines : sequence of Baseline
        The candidates, at least one.
    noise, target : Tensor
        Initial noise and the teacher's samples from it, ``(samples, ...)``. Use training seeds, so that
        the choice does not see held-out seeds.
    denoiser, condition, prediction_type, guidance_scale, unconditional_condition
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
        raise ValueError("There is no baseline to select from; pass at least one.")
    distances = []
    for baseline in baselines:
        run = draw_samples(
            baseline.solver.to(noise.device),
            denoiser,
            noise,
            condition,
            prediction_type=prediction_type,
            guidance_scale=guidance_scale,
            unconditional_condition=unconditional_condition,
            batch_size=batch_size,
        )
        distances.append(l1_distance(run.samples, target))
        if progress is not None:
            progress(baseline, distances[-1])
    return nearest(baselines, distances), distances


def nearest(baselines: Sequence[Baseline], distances: Sequence[float]) -> Baseline:
    """Return the first with the smallest distance, where NaN counts as infinite.

    Examples
    --------
    >>> two = [classical_solver(NoiseSchedule.vp_linear(), 4, order, "edm") for order in (1, 2)]
    >>> nearest(two, [math.nan, 0.1]).order
    2
    """
    ranked = [math.inf if math.isnan(distance) else distance for distance in distances]
    return baselines[ranked.index(min(ranked))]
