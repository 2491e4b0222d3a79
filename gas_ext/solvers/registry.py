"""Solvers by name: ``unipc-3-bh2@logsnr`` is UniPC of order 3 on times uniform in logSNR.

A name is SOLVER or SOLVER@TIMES, where TIMES is a spacing or a list of timesteps; the default is the usual
spacing of the solver. A path that ends in .safetensors is a learned solver.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # listing the names does not import torch
    from gas_ext.schedules import NoiseSchedule
    from gas_ext.solvers.coefficients import Solver

SpacingName = Literal["uniform", "quadratic", "logsnr", "edm", "gits"]

SPACING_TITLES: dict[str, str] = {
    "uniform": "uniform",
    "quadratic": "quadratic",
    "logsnr": "logSNR",
    "edm": "EDM",
    "gits": "GITS",
}
LEARNED_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class _Entry:
    """A training-free solver: its usual spacing, and its class in `gas_ext.solvers` with the arguments."""

    title: str
    source: str
    spacing: str
    solver: str
    options: dict[str, Any]


def _entries() -> dict[str, _Entry]:
    entries: dict[str, _Entry] = {}

    def add(name: str, title: str, source: str, spacing: str, solver: str, **options: Any) -> None:
        entries[name] = _Entry(title, source, spacing, solver, options)

    add("euler", "Euler", "Song et al. 2021", "uniform", "DPMSolver", order=1)
    add("ddim", "DDIM", "Song et al. 2021", "uniform", "DPMSolver", order=1)
    dpm = ("Lu et al. 2022", "logsnr", "DPMSolver")
    for order in (1, 2, 3):
        add(f"dpm++-{order}", f"DPM-Solver++({order}M)", *dpm, order=order)
    for order in (2, 3):
        title = f"DPM-Solver++({order}M), lower order at the end"
        add(f"dpm++-{order}-lower", title, *dpm, order=order, lower_order_final=True)
    for name, title, corrector in (("unipc", "UniPC", True), ("unip", "UniP", False)):
        for order, variant in itertools.product((1, 2, 3, 4), ("bh1", "bh2")):
            unipc = (f"{title}-{order} ({variant})", "Zhao et al. 2023", "logsnr", "UniPCSolver")
            add(f"{name}-{order}-{variant}", *unipc, order=order, variant=variant, corrector=corrector)
    deis = ("Zhang and Chen 2023", "quadratic", "DEISSolver")
    for order in (1, 2, 3):  # the degree of the polynomial, as in the paper
        add(f"deis-{order}", f"DEIS tAB-{order}", *deis, order=order)
    for order in (1, 2, 3, 4):  # the number of evaluations
        add(f"ipndm-{order}", f"iPNDM-{order}", "Zhang and Chen 2023", "edm", "IPNDMSolver", order=order)
    add("heun", "Heun", "Karras et al. 2022", "edm", "HeunSolver")  # `last` depends on the steps
    add("edm", "EDM sampler", "Karras et al. 2022", "edm", "HeunSolver", last="zero")
    return entries


_ENTRIES = _entries()
# UniPC without a variant is bh2, which is more stable on its usual times.
_ALIASES = {name.removesuffix("-bh2"): name for name in _ENTRIES if name.endswith("-bh2")}


def names() -> list[str]:
    """Return the names of all training-free solvers, without their times.

    Examples
    --------
    >>> [name for name in names() if name.startswith("deis")]
    ['deis-1', 'deis-2', 'deis-3']
    """
    return list(_ENTRIES)


def build_solver(name: str, schedule: NoiseSchedule, steps: int | None = None, t_eps: float = 1e-3) -> Solver:
    """Build a solver by its name.

    Parameters
    ----------
    name : str
        SOLVER or SOLVER@TIMES. Solvers: `names`; unipc-3 is short for unipc-3-bh2. Times: "uniform",
        "quadratic", "logsnr", "edm", "gits", or decreasing numbers such as "1,0.5,0.001"; the last two have
        their own last timestep. Or the path of a learned solver, ending in .safetensors.
    schedule : NoiseSchedule
        Schedule of the states.
    steps : int, optional
        Number of network evaluations. If given for a learned solver, it must be the solver's own.
    t_eps : float
        Last timestep, default 1e-3; a learned solver has its own.

    Returns
    -------
    Solver
        On the CPU. `heun` takes any number of evaluations from 2; if it is odd, the last step is an Euler
        step. `edm` takes an odd number from 3, because its last step, to sigma = 0, is an Euler step.

    Raises
    ------
    ValueError
        If the name is unknown, or the solver does not support this schedule or number of steps.
    FileNotFoundError
        If the file does not exist.

    Examples
    --------
    >>> from gas_ext import NoiseSchedule
    >>> build_solver("dpm++-2@1,0.4,0.001", NoiseSchedule.vp_linear(), 2).timesteps().tolist()
    [1.0, 0.4, 0.001]
    """
    if _is_learned(name):
        from gas_ext.solvers.generalized import GeneralizedSolver

        learned = GeneralizedSolver.load(name, schedule=schedule)
        if steps is not None and learned.steps != steps:
            raise ValueError(
                f"{name} makes {learned.steps} network evaluations, not {steps}; leave steps out."
            )
        return learned
    entry, _, spacing = _parse(name)
    if steps is None:
        raise ValueError(f"{name} makes any number of network evaluations; give it with steps (--steps).")
    import gas_ext.solvers
    from gas_ext._utils.checks import whole_number

    steps = whole_number("steps", steps)
    timesteps = spacing if spacing in SPACING_TITLES else [float(time) for time in spacing.split(",")]
    options = dict(entry.options)
    if entry.solver == "HeunSolver":
        options.setdefault("last", "euler" if steps % 2 else "heun")
        _check_heun(name, steps, options["last"])
    build = getattr(gas_ext.solvers, entry.solver)
    solver: Solver = build(schedule, steps, t_eps=t_eps, timesteps=timesteps, **options)
    return solver


def _check_heun(name: str, evaluations: int, last: str) -> None:
    if last == "zero" and (evaluations % 2 == 0 or evaluations < 3):
        raise ValueError(
            f"{name} makes 2 N - 1 network evaluations, at least 3, not {evaluations}; take an odd number, "
            "or heun, which takes any from 2."
        )
    if evaluations < 2:
        raise ValueError(f"{name} makes at least 2 network evaluations, not {evaluations}.")


def _is_learned(name: str) -> bool:
    if not isinstance(name, str):
        raise TypeError(f"The name of a solver is {name!r}, but must be a str, such as 'ddim@uniform'.")
    return name.endswith(LEARNED_SUFFIX)


def _parse(name: str) -> tuple[_Entry, str, str]:
    """Return the entry of a solver, its full name and its times."""
    base, at, times = name.partition("@")
    base = _ALIASES.get(base, base)
    if base not in _ENTRIES or (at and not _are_times(times)):
        short = [known.removesuffix("-bh2") for known in _ENTRIES if not known.endswith("-bh1")]
        raise ValueError(
            f"There is no solver {name!r}; expected one of {', '.join(short)} (unipc and unip also with "
            f"-bh1), optionally followed by @ and one of {', '.join(SPACING_TITLES)} or a list of timesteps "
            f"such as 1,0.5,0.001, or the file of a learned solver ({LEARNED_SUFFIX})."
        )
    return _ENTRIES[base], base, times or _ENTRIES[base].spacing


def _are_times(text: str) -> bool:
    try:
        return text in SPACING_TITLES or len([float(time) for time in text.split(",")]) > 1
    except ValueError:
        return False


def canonical_name(name: str) -> str:
    """Return the full name, with variant and times.

    Examples
    --------
    >>> canonical_name("unipc-3")
    'unipc-3-bh2@logsnr'
    """
    if _is_learned(name):
        return name
    _, base, times = _parse(name)
    return f"{base}@{times}"


def display_name(name: str) -> str:
    """Return the name for tables and plots; the file of a learned solver is read.

    Examples
    --------
    >>> display_name("deis-2"), display_name("ddim@1,0.5,0.1")
    ('DEIS tAB-2, quadratic times', 'DDIM, custom times')
    """
    if _is_learned(name):
        return f"{describe(name)['solver']} ({Path(name).parent.name or Path(name).stem})"
    described = describe(name)
    return f"{described['solver']}, {described['times']} times"


def describe(name: str) -> dict[str, Any]:
    """Return name, title, times and source of a solver without building it, as plain values.

    Examples
    --------
    >>> list(describe("ipndm-2@gits").values())
    ['ipndm-2@gits', 'iPNDM-2', 'GITS', 'Zhang and Chen 2023', False]
    """
    if _is_learned(name):
        return _describe_learned(name)
    entry, _, times = _parse(name)
    return {
        "name": canonical_name(name),
        "solver": entry.title,
        "times": SPACING_TITLES.get(times, "custom"),
        "source": entry.source,
        "learned": False,
    }


def _describe_learned(path: str) -> dict[str, Any]:
    from gas_ext.solvers.generalized import GeneralizedSolver
    from gas_ext.solvers.presets import PRESETS

    solver = GeneralizedSolver.load(path)
    preset = PRESETS[solver.preset]
    title = preset.title
    if solver.training_summary.get("objective") == "gas":
        title = "GAS" if solver.preset == "gs" else f"{title} with GAS"
    return {
        "name": path,
        "solver": title,
        "times": "learned" if "timestep_logits" in preset.learned else "fixed",
        "source": preset.about,
        "learned": True,
    }
