"""The solvers of a comparison: from what a user names to solvers, one for each number of evaluations."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch

from gas_ext._utils.sealed_files import checksum
from gas_ext._utils.seeds import common_seeds, parse_seeds
from gas_ext.denoisers import Denoiser
from gas_ext.sampler import GASSampler
from gas_ext.solvers import DPMSolver
from gas_ext.solvers.coefficients import Solver
from gas_ext.solvers.generalized import GeneralizedSolver

# A name of `gas_ext.solvers.registry`, a solver file (with {nfe} for the number of evaluations), one name for
# each number of evaluations, or a solver itself.
SolverLike: TypeAlias = str | Mapping[int, str] | Solver
TeacherLike: TypeAlias = Solver | Callable[[int], Solver]

TEACHER = "teacher"
SHIPPED = "demo"  # the solver that ships with the embedded teacher
_LABEL = re.compile(r"([^=/@]+)=(.+)", re.DOTALL)


@dataclass(frozen=True)
class Entry:
    """One solver with one number of network evaluations.

    Parameters
    ----------
    label : str
        Name in tables and plots; the same for all numbers of evaluations of one solver.
    kind : str
        "teacher", "classical" or "learned".
    solver : Solver
        The solver, on the denoiser's device.
    description : str
        Description for readers.
    teacher : str
        Identity of the teacher's solver that it is compared with; empty for the teacher itself.
    """

    label: str
    kind: str
    solver: Solver = field(repr=False)
    description: str
    teacher: str = ""

    @property
    def steps(self) -> int:
        """Network evaluations, as planned."""
        return self.solver.steps


@dataclass(frozen=True)
class LeftOut:
    """A solver that does not support a number of evaluations, and why."""

    label: str
    nfe: int
    reason: str


def named_solvers(solvers: Sequence[SolverLike] | Mapping[str, SolverLike]) -> dict[str, SolverLike]:
    """Return solvers by label; "LABEL=NAME" names one, others are called by what they are.

    Raises
    ------
    ValueError
        If there are none, or two have one label.

    Examples
    --------
    >>> list(named_solvers(["unipc-3", "mine=runs/a/solver.safetensors", "runs/gs-{nfe}/solver.safetensors"]))
    ['unipc-3', 'mine', 'gs']
    """
    given = solvers.items() if isinstance(solvers, Mapping) else map(_split, solvers)
    pairs: list[tuple[str, SolverLike]] = list(given)
    if not pairs:
        raise ValueError("There is no solver to judge; name at least one, such as dpm++-2.")
    named: dict[str, SolverLike] = {}
    for label, solver in pairs:
        if label == TEACHER:
            if solver == TEACHER:
                continue  # it always takes part
            raise ValueError("The label 'teacher' is the teacher's own; give another one as LABEL=NAME.")
        if label in named:
            raise ValueError(f"Two solvers are called {label!r}; give them labels, as LABEL=NAME.")
        named[label] = solver
    if not named:
        raise ValueError("There is no solver to judge but the teacher; name at least one, such as dpm++-2.")
    return named


def _split(solver: SolverLike) -> tuple[str, SolverLike]:
    if isinstance(solver, Mapping):
        raise ValueError("Solvers by number of evaluations need a label; give a dict {label: {nfe: name}}.")
    if not isinstance(solver, str):
        name = type(solver).__name__
        return f"{name}-{solver.steps}", solver
    match = _LABEL.fullmatch(solver)
    if match is not None:
        return match[1].strip(), match[2]
    return (_label_of_file(solver) if is_file(solver) else solver), solver


def is_file(name: str) -> bool:
    """Return whether a solver's name stands for a file, or for the one that ships."""
    from gas_ext.solvers.registry import LEARNED_SUFFIX

    return name.endswith((LEARNED_SUFFIX, ".pt", ".pth", ".ckpt")) or name == SHIPPED or Path(name).is_file()


def _label_of_file(name: str) -> str:
    """Name a solver's file after its folder if its own name says nothing, without {nfe}."""
    path = Path(name)
    stem = path.parent.name if path.stem in ("solver", "last") and path.parent.name else path.stem
    return stem.replace("{nfe}", "").strip("-_. ") or path.stem


def build_entries(
    solvers: Mapping[str, SolverLike],
    nfes: Sequence[int],
    denoiser: Denoiser,
    teacher: TeacherLike,
    *,
    t_eps: float | None = None,
    guidance_scale: float | None = None,
) -> tuple[list[Entry], list[LeftOut]]:
    """Build every solver with every number of evaluations, and the teachers they are compared with, first.

    A solver with a number of its own (a file without {nfe}, or one made in Python) takes part once.

    Raises
    ------
    ValueError
        If there is no number, a name is unknown, or a solver is another teacher's or offers none of them.
    FileNotFoundError
        If there is no such file.
    """
    if len(nfes) == 0:
        raise ValueError("There is no number of evaluations; give at least one, such as nfe=[4].")
    t_eps = denoiser.t_eps if t_eps is None else t_eps
    entries: list[tuple[str, str, str, Solver]] = []
    left_out: list[LeftOut] = []
    for label, solver in solvers.items():
        if isinstance(solver, (str, Mapping)):
            found, missing = _named(label, solver, nfes, denoiser, t_eps)
            if not found:
                raise ValueError(missing[0].reason)
            entries += found
            left_out += missing
        else:
            learned = isinstance(solver, GeneralizedSolver) and bool(solver.training_summary)
            if isinstance(solver, GeneralizedSolver):
                _check_teacher(solver, label, denoiser)
            entries.append((label, "learned" if learned else "classical", name_of(solver), solver))
    return _with_teachers(entries, denoiser, teacher, guidance_scale), left_out


def _named(
    label: str, solver: str | Mapping[int, str], nfes: Sequence[int], denoiser: Denoiser, t_eps: float
) -> tuple[list[tuple[str, str, str, Solver]], list[LeftOut]]:
    """Build what a name, or one name for each number of evaluations, stands for; a file once."""
    from gas_ext.solvers.registry import build_solver, display_name

    names = dict.fromkeys(nfes, solver) if isinstance(solver, str) else solver
    found: dict[str, tuple[str, str, str, Solver]] = {}
    left_out = []
    for nfe in nfes:
        if nfe not in names:
            reason = f"no solver was named for {nfe} evaluations, only for {sorted(names)}"
            left_out.append(LeftOut(label, nfe, reason))
        elif is_file(names[nfe]):
            path = names[nfe].replace("{nfe}", str(nfe))
            found.setdefault(path, (label, "learned", path, load_solver(path, denoiser)))
        else:
            try:
                built = build_solver(names[nfe], denoiser.schedule, nfe, t_eps)
            except ValueError as error:
                left_out.append(LeftOut(label, nfe, str(error)))
            else:
                found[f"{names[nfe]}, {nfe}"] = (label, "classical", display_name(names[nfe]), built)
    return list(found.values()), left_out


def load_solver(path: str, denoiser: Denoiser) -> GeneralizedSolver:
    """Load a solver file and make sure that it was learned for this network.

    One that names no teacher is taken for a solver of this network, with a warning, where schedule and
    prediction type are the same.

    Raises
    ------
    ValueError
        If it was learned for another one.
    FileNotFoundError
        If there is no such file.
    """
    from gas_ext.teachers.demo import WEIGHTS

    solver = GeneralizedSolver.load(WEIGHTS / "solver.safetensors" if path == SHIPPED else path)
    _check_teacher(solver, path, denoiser)
    if not solver.teacher.get("name") and not solver.teacher.get("weights_hash"):
        GASSampler(solver, denoiser)  # refuses another schedule or prediction type
        warnings.warn(
            f"{path} names no teacher; it is taken for a solver of {denoiser.name!r}, which has the same "
            "noise schedule.",
            stacklevel=2,
        )
    return solver


def _check_teacher(solver: GeneralizedSolver, what: str, denoiser: Denoiser) -> None:
    """Raise ValueError if a solver was learned for another network."""
    name, weights_hash = solver.teacher.get("name"), solver.teacher.get("weights_hash")
    if name not in (None, denoiser.name):
        raise ValueError(
            f"{what} was learned for teacher {name!r}, not for {denoiser.name!r}: use it with its own "
            "teacher, or a solver of this one."
        )
    if (weights_hash or "") not in ("", denoiser.weights_hash):
        raise ValueError(
            f"{what} was learned for other weights of {denoiser.name!r} (hash {str(weights_hash)[:12]}, not "
            f"{denoiser.weights_hash[:12] or 'known'}): learn a solver for these."
        )


def _with_teachers(
    entries: Sequence[tuple[str, str, str, Solver]],
    denoiser: Denoiser,
    teacher: TeacherLike,
    guidance_scale: float | None,
) -> list[Entry]:
    """Put everything on one device, and the teacher of each solver in front."""
    teachers: dict[str, Entry] = {}
    judged = []
    for label, kind, description, solver in entries:
        solver = _placed(solver, denoiser)
        guide = _placed(teacher if isinstance(teacher, Solver) else teacher(solver.steps), denoiser)
        identity = solver_identity(guide, denoiser, guidance_scale)
        teachers.setdefault(identity, Entry(TEACHER, TEACHER, guide, name_of(guide)))
        judged.append(Entry(label, kind, solver, description, identity))
    seen = set()
    for entry in judged:
        if (entry.label, entry.steps) in seen:
            raise ValueError(f"{entry.label} has two solvers of {entry.steps} evaluations; give them labels.")
        seen.add((entry.label, entry.steps))
    return [*teachers.values(), *judged]


def _placed(solver: Solver, denoiser: Denoiser) -> Solver:
    if isinstance(solver, torch.nn.Module):
        solver.to(denoiser.device)
    return solver


def name_of(solver: Solver) -> str:
    """Return the description of a solver that has no name in the registry."""
    if isinstance(solver, GeneralizedSolver):
        return "learned" if solver.training_summary else f"DPM-Solver++({solver.theory_order}M)"
    order = getattr(solver, "order", None)
    if isinstance(solver, DPMSolver):
        return f"DPM-Solver++({order}M)"
    return type(solver).__name__.removesuffix("Solver") + (f"-{order}" if order else "")


def solver_identity(solver: Solver, denoiser: Denoiser, guidance_scale: float | None) -> str:
    """Return a hash (hex) of every number of a solve: two solvers with one hash give the same samples."""
    sampler = GASSampler(solver, denoiser, guidance_scale=guidance_scale)
    with torch.no_grad():
        table = sampler.coefficients()
    tensors = {f"row.{number}": row.detach().cpu() for number, row in enumerate(table.rows)}
    tensors["timesteps"] = table.timesteps.detach().cpu()
    tensors["seen"] = table.evaluation_timesteps.detach().cpu()
    return checksum({"steps": solver.steps, "guidance_scale": sampler.guidance_scale}, tensors)


def check_seeds(entries: Sequence[Entry], seeds: Sequence[int], training_seeds: Sequence[int] = ()) -> None:
    """Raise ValueError if a learned solver would be judged on seeds that it was learned from.

    Parameters
    ----------
    entries : sequence of Entry
        The solvers. What a file records under "seeds" of its training is taken from there.
    seeds : sequence of int
        The seeds to judge on.
    training_seeds : sequence of int
        Seeds that solvers whose files record none were learned from.
    """
    for entry in entries:
        if entry.kind != "learned":
            continue
        recorded: Any = getattr(entry.solver, "training_summary", {}).get("seeds")
        learned_from = parse_seeds(recorded) if isinstance(recorded, str) else training_seeds
        met, first = common_seeds(learned_from, seeds)
        if met:
            raise ValueError(
                f"{entry.label} was learned from {met} of the seeds, such as {first}, so its numbers "
                "would flatter it; choose other seeds, or allow it with --allow-training-seeds."
            )
