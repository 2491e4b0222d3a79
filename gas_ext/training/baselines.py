"""Training-free solvers: what a learned solver starts from and has to beat."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import Tensor

from gas_ext._utils.distances import l1_distance
from gas_ext.denoisers import DenoiserFunction
from gas_ext.samples.draw import draw_samples
from gas_ext.schedules import NoiseSchedule
from gas_ext.solvers.generalized import GeneralizedSolver
from gas_ext.solvers.registry import SPACING_TITLES, build_solver, describe, display_name
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
"""Training-free solvers of `gas_ext.solvers.registry`, by family; hardly useful ones are left out."""


@dataclass(frozen=True)
class Baseline:
    """DPM-Solver++ multistep of one order on one spacing, as an untrained solver.

    Parameters
    ----------
    order : int
        Order 1 to 3; the first steps use lower orders until there is a history.
    spacing : str
        A name of `gas_ext.solvers.timesteps.SPACINGS`.
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


@dataclass(frozen=True)
class NamedBaseline:
    """A training-free solver by its name.

    Parameters
    ----------
    name : str
        A name of `gas_ext.solvers.registry`, such as "unipc-2-bh1@quadratic".
    solver : GeneralizedSolver or MultistepSolver
        The solver itself.
    """

    name: str
    solver: Any

    @property
    def description(self) -> str:
        """Human-readable name, such as "UniPC-2 (bh1), quadratic times"."""
        return display_name(self.name)


class _Candidate(Protocol):
    @property
    def solver(self) -> Any: ...


_C = TypeVar("_C", bound=_Candidate)


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
) -> list[NamedBaseline]:
    """Build every solver of some families at every spacing; Heun's needs at least two evaluations.

    Parameters
    ----------
    schedule, steps, t_eps
        As for `build_solver`.
    families : sequence of str
        Names of `FAMILIES`.

    Raises
    ------
    ValueError
        If the schedule has alpha(1) = 0 and a family steps in lambda.

    Examples
    --------
    >>> schedule = NoiseSchedule.vp_linear()
    >>> found = named_baselines(schedule, 4)
    >>> len(found), len(named_baselines(schedule, 1)), found[0].description
    (64, 60, 'DDIM, uniform times')
    """
    names = [name for family in families for name in family_names(family) if family != "Heun" or steps > 1]
    return [NamedBaseline(name, build_solver(name, schedule, steps, t_eps)) for name in names]


def select_baseline(
    baselines: Sequence[_C],
    denoiser: DenoiserFunction,
    noise: Tensor,
    target: Tensor,
    condition: Any = None,
    *,
    prediction_type: str | None = None,
    guidance_scale: float | None = None,
    unconditional_condition: Any = None,
    batch_size: int = 32,
    progress: Callable[[_C, float], None] | None = None,
) -> tuple[_C, list[float]]:
    """Find the training-free solver nearest to the teacher.

    Parameters
    ----------
    baselines : sequence of Baseline or NamedBaseline
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
    (Baseline or NamedBaseline, list of float)
        The one with the smallest mean L1 distance, and the distances of all. NaN counts as infinite.
    """
    if not baselines:
        raise ValueError("there is no baseline to choose from: pass at least one")
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


def nearest(baselines: Sequence[_C], distances: Sequence[float]) -> _C:
    """Return the one with the smallest distance, where NaN counts as infinite; the first of equal ones.

    Examples
    --------
    >>> two = [classical_solver(NoiseSchedule.vp_linear(), 4, order, "edm") for order in (1, 2)]
    >>> nearest(two, [math.nan, 0.1]).order
    2
    """
    ranked = [math.inf if math.isnan(distance) else distance for distance in distances]
    return baselines[ranked.index(min(ranked))]
