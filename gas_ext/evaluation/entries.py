"""The solvers of a comparison: from the names that a user gives to one solver per NFE."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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

# A name of `gas_ext.solvers.registry`, a solver file ({nfe} in its path is replaced), a name for each NFE, or
# a solver itself.
SolverLike: TypeAlias = str | Mapping[int, str] | Solver
TeacherLike: TypeAlias = Solver | Callable[[int], Solver]

TEACHER = "teacher"
SHIPPED = "demo"  # the solver that ships with the embedded teacher
_LABEL = re.compile(r"([^=/@]+)=(.+)", re.DOTALL)


@dataclass(frozen=True)
class Entry:
    """One solver with one NFE."""

    label: str  # in tables and plots, the same for every NFE of one solver
    kind: str  # "teacher", "classical" or "learned"
    solver: Solver = field(repr=False)
    description: str
    teacher: str = ""  # identity of the teacher's solver it is compared with; empty for the teacher

    @property
    def steps(self) -> int:
        """Network evaluations, as planned."""
        return self.solver.steps


@dataclass(frozen=True)
class LeftOut:
    """A solver that does not support an NFE, and why."""

    label: str
    nfe: int
    reason: str


def named_solvers(solvers: Sequence[SolverLike] | Mapping[str, SolverLike]) -> dict[str, SolverLike]:
    """Return solvers by label: that of "LABEL=NAME", or one derived from the solver.

    >>> list(named_solvers(["unipc-3", "mine=runs/a/solver.safetensors", "runs/gs-{nfe}/solver.safetensors"]))
    ['unipc-3', 'mine', 'gs']
    """
    pairs: Iterable[tuple[str, SolverLike]] = map(_split, solvers)
    if isinstance(solvers, Mapping):
        pairs = solvers.items()
    named: dict[str, SolverLike] = {}
    for label, solver in pairs:
        if label == TEACHER == solver:
            continue  # the teacher always takes part
        if label == TEACHER:
            raise ValueError("The label 'teacher' is reserved for the teacher; use another, as LABEL=NAME.")
        if label in named:
            raise ValueError(f"Two solvers have the label {label!r}; give each its own, as LABEL=NAME.")
        named[label] = solver
    if not named:
        raise ValueError("There are no solvers to compare; pass at least one, such as dpm++-2.")
    return named


def _split(solver: SolverLike) -> tuple[str, SolverLike]:
    """Return label and solver."""
    if isinstance(solver, Mapping):
        raise ValueError("A solver given as {nfe: name} needs a label; pass a dict {label: {nfe: name}}.")
    if not isinstance(solver, str):
        return f"{type(solver).__name__}-{solver.steps}", solver
    match = _LABEL.fullmatch(solver)
    if match is not None:
        return match[1].strip(), match[2]
    return (_label_of_file(solver) if is_file(solver) else solver), solver


def is_file(name: str) -> bool:
    """Return whether a solver's name means a file, or the solver that ships."""
    from gas_ext.solvers.registry import LEARNED_SUFFIX

    return name.endswith((LEARNED_SUFFIX, ".pt", ".pth", ".ckpt")) or name == SHIPPED or Path(name).is_file()


def _label_of_file(name: str) -> str:
    """Return the stem of a path, or its folder's name if the stem is generic, without {nfe}."""
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
    """Build every solver at every NFE, and in front the teachers they are compared with.

    A solver with a fixed NFE (a file without {nfe}, or one built in Python) takes part once. Raises
    ValueError or FileNotFoundError if a solver is unknown, belongs to another teacher or supports no NFE.
    """
    if len(nfes) == 0:
        raise ValueError("nfe is empty; pass at least one number of evaluations, such as nfe=[4].")
    t_eps = denoiser.t_eps if t_eps is None else t_eps
    entries: list[Entry] = []
    left_out: list[LeftOut] = []
    for label, solver in solvers.items():
        if isinstance(solver, (str, Mapping)):
            found, missing = _build_named(label, solver, nfes, denoiser, t_eps)
            if not found:
                raise ValueError(missing[0].reason)
            entries += found
            left_out += missing
        else:
            learned = isinstance(solver, GeneralizedSolver) and bool(solver.training_summary)
            if isinstance(solver, GeneralizedSolver):
                _check_teacher(solver, label, denoiser)
            entries.append(Entry(label, "learned" if learned else "classical", solver, name_of(solver)))
    return _with_teachers(entries, denoiser, teacher, guidance_scale), left_out


def _build_named(
    label: str, solver: str | Mapping[int, str], nfes: Sequence[int], denoiser: Denoiser, t_eps: float
) -> tuple[list[Entry], list[LeftOut]]:
    """Build the solvers of a name, or of a name for each NFE; every file once."""
    from gas_ext.solvers.registry import build_solver, display_name

    names = dict.fromkeys(nfes, solver) if isinstance(solver, str) else solver
    found: dict[str, Entry] = {}
    left_out = []
    for nfe in nfes:
        if nfe not in names:
            reason = f"There is no solver for {nfe} evaluations, only for {sorted(names)}."
            left_out.append(LeftOut(label, nfe, reason))
        elif is_file(names[nfe]):
            path = names[nfe].replace("{nfe}", str(nfe))
            found.setdefault(path, Entry(label, "learned", load_solver(path, denoiser), path))
        else:
            try:
                built = build_solver(names[nfe], denoiser.schedule, nfe, t_eps)
            except ValueError as error:
                left_out.append(LeftOut(label, nfe, str(error)))
            else:
                found[f"{names[nfe]}, {nfe}"] = Entry(label, "classical", built, display_name(names[nfe]))
    return list(found.values()), left_out


def load_solver(path: str, denoiser: Denoiser) -> GeneralizedSolver:
    """Load a solver file; ValueError if it was learned for another network.

    A file that names no teacher is used with a warning if schedule and prediction type are the same.
    """
    from gas_ext.teachers.demo import WEIGHTS

    solver = GeneralizedSolver.load(WEIGHTS / "solver.safetensors" if path == SHIPPED else path)
    _check_teacher(solver, path, denoiser)
    if not solver.teacher.get("name") and not solver.teacher.get("weights_hash"):
        GASSampler(solver, denoiser)  # raises if schedule or prediction type differ
        warnings.warn(
            f"{path} names no teacher; it is assumed to be a solver for {denoiser.name!r}, which "
            "has the same noise schedule.",
            stacklevel=2,
        )
    return solver


def _check_teacher(solver: GeneralizedSolver, what: str, denoiser: Denoiser) -> None:
    """Raise ValueError if a solver was learned for another network."""
    name, weights_hash = solver.teacher.get("name"), solver.teacher.get("weights_hash")
    if name not in (None, denoiser.name):
        raise ValueError(
            f"{what} was learned for teacher {name!r}, not for {denoiser.name!r}; use it with its own "
            "teacher, or use a solver learned for this one."
        )
    if (weights_hash or "") not in ("", denoiser.weights_hash):
        raise ValueError(
            f"{what} was learned for other weights of {denoiser.name!r} (hash {str(weights_hash)[:12]}, not "
            f"{denoiser.weights_hash[:12] or 'known'}); learn a solver for these weights."
        )


def _with_teachers(
    entries: Sequence[Entry], denoiser: Denoiser, teacher: TeacherLike, guidance_scale: float | None
) -> list[Entry]:
    """Move all solvers to one device, and put the teacher of each in front."""
    teachers: dict[str, Entry] = {}
    compared = []
    seen = set()
    for entry in entries:
        if (entry.label, entry.steps) in seen:
            raise ValueError(
                f"{entry.label} has two solvers of {entry.steps} evaluations; give each its own label."
            )
        seen.add((entry.label, entry.steps))
        guide = teacher if isinstance(teacher, Solver) else teacher(entry.steps)
        for solver in (entry.solver, guide):
            if isinstance(solver, torch.nn.Module):
                solver.to(denoiser.device)
        identity = solver_identity(guide, denoiser, guidance_scale)
        teachers.setdefault(identity, Entry(TEACHER, TEACHER, guide, name_of(guide)))
        compared.append(replace(entry, teacher=identity))
    return [*teachers.values(), *compared]


def name_of(solver: Solver) -> str:
    """Return the description of a solver that was not built by name."""
    if isinstance(solver, GeneralizedSolver):
        return "learned" if solver.training_summary else f"DPM-Solver++({solver.theory_order}M)"
    order = getattr(solver, "order", None)
    if isinstance(solver, DPMSolver):
        return f"DPM-Solver++({order}M)"
    return type(solver).__name__.removesuffix("Solver") + (f"-{order}" if order else "")


def solver_identity(solver: Solver, denoiser: Denoiser, guidance_scale: float | None) -> str:
    """Return a hash (hex) of all coefficients: two solvers with one hash give the same samples."""
    sampler = GASSampler(solver, denoiser, guidance_scale=guidance_scale)
    with torch.no_grad():
        table = sampler.coefficients()
    tensors = {f"row.{number}": row.detach().cpu() for number, row in enumerate(table.rows)}
    tensors["timesteps"] = table.timesteps.detach().cpu()
    tensors["seen"] = table.evaluation_timesteps.detach().cpu()
    return checksum({"steps": solver.steps, "guidance_scale": sampler.guidance_scale}, tensors)


def check_seeds(entries: Sequence[Entry], seeds: Sequence[int], training_seeds: Sequence[int] = ()) -> None:
    """Raise ValueError if a learned solver would be evaluated on its training seeds.

    These are the ones in its training summary, or else `training_seeds`.
    """
    for entry in entries:
        if entry.kind != "learned":
            continue
        recorded: Any = getattr(entry.solver, "training_summary", {}).get("seeds")
        learned_from = parse_seeds(recorded) if isinstance(recorded, str) else training_seeds
        count, first = common_seeds(learned_from, seeds)
        if count:
            raise ValueError(
                f"{entry.label} was learned from {count} of the seeds, such as {first}, which biases its "
                "numbers; choose other seeds, or pass --allow-training-seeds (training_seeds=None)."
            )
