"""A learned few-step solver: a small set of numbers, how they become coefficients, and their file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gas_ext._utils.checks import default_device, flag, float64_table, path_of, real_number, whole_number
from gas_ext._utils.records import reason_of
from gas_ext.schedules import NoiseSchedule, as_float64, check_schedule
from gas_ext.solvers.coefficients import (
    SolverCoefficients,
    StepWeights,
    check_guidance_scale,
    check_prediction_type,
    data_prediction_coefficients,
    data_scale,
    free_weights,
    fused_rows,
    guided_weights,
    reference_s4s_weights,
)
from gas_ext.solvers.files import (
    Record,
    read_reference_checkpoint,
    read_solver_file,
    write_reference_checkpoint,
    write_solver_file,
)
from gas_ext.solvers.presets import get_preset
from gas_ext.solvers.timesteps import (
    SPACINGS,
    check_interval,
    inverse_stick_breaking,
    keep_inside,
    spaced_timesteps,
    stick_breaking,
)

if TYPE_CHECKING:
    from typing_extensions import Self

MAX_ORDER = 32  # order states and order - 1 older data predictions fit into one fused update


class GeneralizedSolver(nn.Module):
    """Times, time offsets and weights of an N-step solver, trained by back-propagating through the solve.

    Untrained it is DPM-Solver++ (multistep) at the given timesteps. GAS, arXiv 2510.17699, section 3.

    Parameters
    ----------
    schedule : NoiseSchedule
        Schedule of the states.
    steps : int
        Number N of network evaluations, at least 1.
    order : int, optional
        How many states and data predictions a step may use, 1 to min(N, 32); the highest if not given.
    t_eps : float
        Last time.
    theory_guidance : bool
        True: learned corrections are added to the DPM-Solver++ weights of the *current* times. False: the
        data corrections are the weights themselves (a linear multistep solver as in S4S), started at the
        theory's weights; they do not follow the times.
    theory_order : int
        Order 1 to 3 of the underlying DPM-Solver++.
    timesteps : str or sequence of float
        Where the times start: a spacing of `gas_ext.solvers.timesteps`, or the N + 1 times themselves.
    prediction_type : str, optional
        What the network of this solver predicts, if known; see `GASSampler`.
    guidance_scale : float, optional
        Guidance scale this solver is meant for.
    compat : str, optional
        "reference-s4s": compute what the published code computes without theory guidance.
    preset : str
        Which of the parameters training changes, a name of `gas_ext.solvers.presets.PRESETS`; the others do not
        require a gradient. The presets of S4S need theory_guidance=False, those of DPM-Solver++ True.

    Attributes
    ----------
    timestep_logits : Parameter
        (N - 1,) stick-breaking logits, the first for the last time before t_eps.
    time_offsets : Parameter
        (N,) added to the time that the network sees at step n.
    data_corrections, state_corrections : Parameter
        (order, N) row i acts on D_{n-i} (or its divided difference) and x_{n-i}; see
        `gas_ext.solvers.coefficients.guided_weights`.
    teacher, training_summary : dict
        What the file says about where the solver comes from.

    Raises
    ------
    TypeError
        If a value is of the wrong type.
    ValueError
        If a value is out of its range.

    Examples
    --------
    >>> solver = GeneralizedSolver(NoiseSchedule.vp_linear(), steps=4, timesteps="logsnr")
    >>> solver.timesteps().shape, solver.data_corrections.shape
    (torch.Size([5]), torch.Size([4, 4]))
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        steps: int,
        order: int | None = None,
        t_eps: float = 1e-3,
        theory_guidance: bool = True,
        *,
        theory_order: int = 3,
        timesteps: str | Sequence[float] | Tensor = "uniform",
        prediction_type: str | None = None,
        guidance_scale: float | None = None,
        compat: str | None = None,
        preset: str = "gs",
    ) -> None:
        super().__init__()
        check_schedule(schedule)
        # Plain Python numbers from here on: NumPy's and tensors do not go into the file's JSON.
        steps, t_eps = whole_number("steps", steps), real_number("t_eps", t_eps)
        theory_order = whole_number("theory_order", theory_order)
        check_interval(schedule, steps, t_eps)
        highest = min(steps, MAX_ORDER)
        order = highest if order is None else whole_number("order", order)
        if not 1 <= order <= highest:
            raise ValueError(
                f"order is {order}, but must lie between 1 and {highest} (the steps, at most {MAX_ORDER})."
            )
        if theory_order not in (1, 2, 3):
            raise ValueError(f"theory_order is {theory_order}, but must be 1, 2 or 3.")
        if compat not in (None, "reference-s4s"):
            raise ValueError(f"compat is {compat!r}, but only 'reference-s4s' is known.")
        if prediction_type is not None:
            check_prediction_type(schedule, prediction_type)
        self.schedule = schedule
        self.steps = steps
        self.order = order
        self.t_eps = t_eps
        self.theory_guidance = flag("theory_guidance", theory_guidance) and compat is None
        self.theory_order = theory_order
        self.compat = compat
        self.prediction_type = prediction_type
        self.guidance_scale = check_guidance_scale(guidance_scale)
        self.teacher: dict[str, Any] = {}
        self.training_summary: dict[str, Any] = {}
        table = torch.zeros(order, steps, dtype=torch.float64, device="cpu")
        self.timestep_logits = nn.Parameter(inverse_stick_breaking(self._initial_timesteps(timesteps)))
        self.time_offsets = nn.Parameter(table[0].clone())
        self.data_corrections = nn.Parameter(table)
        self.state_corrections = nn.Parameter(table.clone())
        if not self.theory_guidance:
            self._start_from_theory()
        self.set_preset(preset)
        self.to(default_device())

    def _initial_timesteps(self, timesteps: str | Sequence[float] | Tensor) -> Tensor:
        if isinstance(timesteps, str):
            return spaced_timesteps(self.schedule, self.steps, self.t_eps, timesteps)
        times = float64_table("timesteps", timesteps)
        if times.shape != (self.steps + 1,) or abs(times[-1].item() - self.t_eps) > 1e-9:
            raise ValueError(
                f"Expected {self.steps + 1} timesteps from 1 to t_eps = {self.t_eps}, or one of "
                f"{', '.join(SPACINGS)}, but got {times.tolist()}."
            )
        return times

    def set_preset(self, preset: str) -> None:
        """Say which of the parameters training changes; see `preset` above.

        Raises
        ------
        ValueError
            If the preset is unknown, or needs free weights where this solver's are not, or the reverse.
        """
        free = get_preset(preset).free
        if free is not None and free == self.theory_guidance:
            raise ValueError(
                f"A solver with preset {preset} needs theory_guidance={not free}, but this one has "
                f"{self.theory_guidance}."
            )
        self.preset = preset
        self.requires_grad_()

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Say whether what this preset of solver learns requires a gradient; the rest never does."""
        learned = get_preset(self.preset).learned
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(requires_grad and name in learned)
        return self

    @torch.no_grad()
    def _start_from_theory(self) -> None:
        """Set the free data weights to those of the theory at the present times."""
        times, zeros = self.timesteps(), torch.zeros_like(self.data_corrections)
        weights = guided_weights(self.schedule, times, zeros, zeros, self.theory_order).data.T
        if self.compat is not None:
            weights = weights / data_scale(self.schedule, times)
        self.data_corrections.copy_(weights)

    def timesteps(self) -> Tensor:
        """Return the times of the states: (N + 1,) float64, strictly decreasing from 1 to t_eps."""
        return stick_breaking(self.timestep_logits, self.t_eps)

    def evaluation_timesteps(self) -> Tensor:
        """Return the times the network sees: t_n + offset_n, (N,) float64, kept in the schedule's domain.

        See `gas_ext.solvers.timesteps.keep_inside`.
        """
        return self._evaluation_timesteps(self.timesteps())

    def _evaluation_timesteps(self, timesteps: Tensor) -> Tensor:
        times = timesteps[:-1] + self.time_offsets.to(torch.float64)
        return keep_inside(times, self.schedule, self.t_eps)

    def weights(self, timesteps: Tensor | None = None) -> StepWeights:
        """Return the weights of all updates, theory and corrections folded; see `StepWeights`."""
        times = self.timesteps() if timesteps is None else as_float64(timesteps)
        if times.shape != (self.steps + 1,):
            raise ValueError(f"Expected {self.steps + 1} timesteps, but got shape {tuple(times.shape)}.")
        tables = self.data_corrections, self.state_corrections
        if self.compat == "reference-s4s":
            return reference_s4s_weights(self.schedule, times, *tables)
        if not self.theory_guidance:
            return free_weights(self.schedule, times, *tables)
        return guided_weights(self.schedule, times, *tables, self.theory_order)

    def coefficients(
        self, prediction_type: str | None = None, guidance_scale: float | None = None
    ) -> SolverCoefficients:
        """Return every number of a solve as one differentiable float64 computation on the parameters' device.

        Parameters
        ----------
        prediction_type : str, optional
            As in `GASSampler`; the solver's own if not given.
        guidance_scale : float, optional
            Classifier-free guidance scale; 1 if not given.

        Raises
        ------
        ValueError
            If the prediction type is not known, or not usable on this schedule.
        """
        prediction_type = prediction_type or self.prediction_type
        if prediction_type is None:
            raise ValueError("This solver has no prediction type of its own; pass prediction_type.")
        times = self.timesteps()
        seen = self._evaluation_timesteps(times)
        p, q = data_prediction_coefficients(self.schedule, times[:-1], seen, prediction_type)
        weights = self.weights(times)
        return SolverCoefficients(fused_rows(p, q, weights, guidance_scale), times, seen, weights)

    def extra_repr(self) -> str:
        """Return what distinguishes this solver, for `print(solver)`."""
        weights = self.compat or ("theory guidance" if self.theory_guidance else "free weights")
        sizes = f"steps={self.steps}, order={self.order}, t_eps={self.t_eps}"
        return f"{self.schedule!r}, {sizes}, {weights}, preset={self.preset}"

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        teacher: Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the solver to one safetensors file, atomically.

        Parameters
        ----------
        path : path
            The file; it is replaced only when the new one is complete.
        teacher : mapping, optional
            Identity of the network, {"name": ..., "weights_hash": ...}; replaces `self.teacher`.
        training : mapping, optional
            Summary of the training, JSON values; replaces `self.training_summary`.
        """
        path = path_of("path", path)
        teacher = _plain_record("teacher", self.teacher if teacher is None else teacher)
        training = _plain_record("training", self.training_summary if training is None else training)
        self.teacher, self.training_summary = teacher, training
        record: Record = {
            "schedule": self.schedule.to_dict(),
            "steps": self.steps,
            "order": self.order,
            "t_eps": self.t_eps,
            "theory_guidance": self.theory_guidance,
            "theory_order": self.theory_order,
            "compat": self.compat,
            "kind": self.preset,
            "prediction_type": self.prediction_type,
            "guidance_scale": self.guidance_scale,
            "teacher": self.teacher,
            "training": self.training_summary,
        }
        tensors = {name: value.detach() for name, value in self.named_parameters()}
        write_solver_file(path, record, tensors)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        schedule: NoiseSchedule | None = None,
        prediction_type: str | None = None,
        guidance_scale: float | None = None,
        weights_hash: str | None = None,
    ) -> GeneralizedSolver:
        """Read a solver file, bit for bit what was saved.

        Parameters
        ----------
        path : path
            A file written by `save`.
        schedule, prediction_type, guidance_scale, weights_hash : optional
            What the solver must have been made for (the last: hash of the teacher's weights).

        Returns
        -------
        GeneralizedSolver

        Raises
        ------
        TypeError
            If guidance_scale is not a number.
        ValueError
            If the file is damaged, not a solver, of another format version, or made for something else; the
            message names what.
        FileNotFoundError
            If there is no such file.
        """
        if schedule is not None:
            check_schedule(schedule)
        record, tensors = read_solver_file(path_of("path", path))
        expected = {
            "schedule": None if schedule is None else schedule.to_dict(),
            "prediction_type": prediction_type,
            "guidance_scale": check_guidance_scale(guidance_scale),
        }
        if weights_hash is not None and not isinstance(weights_hash, str):
            raise TypeError(f"weights_hash is {weights_hash!r}, but must be a str, as a teacher has it.")
        found = {**record, "weights_hash": record["teacher"].get("weights_hash")}
        for name, value in {**expected, "weights_hash": weights_hash}.items():
            if value is not None and found[name] != value:
                raise ValueError(f"{path} was made for {name} {_short(found[name])}, not {_short(value)}.")
        return cls._from_record(record, tensors, str(path))

    @classmethod
    def _from_record(cls, record: Record, tensors: Mapping[str, Tensor], source: str) -> GeneralizedSolver:
        try:
            solver = cls(
                NoiseSchedule.from_dict(record["schedule"]),
                record["steps"],
                record["order"],
                record["t_eps"],
                record["theory_guidance"],
                theory_order=record["theory_order"],
                prediction_type=record["prediction_type"],
                guidance_scale=record["guidance_scale"],
                compat=record["compat"],
                preset=record["kind"],
            )
        except (ArithmeticError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{source} describes no valid solver: {reason_of(error)}.") from error
        solver.teacher, solver.training_summary = record["teacher"], record["training"]
        solver._fill(tensors, source)
        return solver

    def _fill(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Replace all parameters by those read from `source`, with their dtype, after checking them."""
        for name, parameter in self.named_parameters():
            value = tensors.get(name)
            if value is None or value.shape != parameter.shape or not value.is_floating_point():
                got = "nothing" if value is None else f"{tuple(value.shape)} {value.dtype}"
                raise ValueError(
                    f"{source} holds {got} for {name}, but {self.steps} steps of order {self.order} need "
                    f"{tuple(parameter.shape)} floating-point numbers."
                )
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"{source} holds numbers in {name} that are not finite; it cannot be used.")
            parameter.data = value.clone()

    @classmethod
    def from_reference_checkpoint(
        cls,
        path: str | os.PathLike[str],
        schedule: NoiseSchedule,
        steps: int | None = None,
        t_eps: float = 1e-3,
        *,
        theory_guidance: bool = True,
        prediction_type: str | None = None,
        guidance_scale: float | None = None,
    ) -> GeneralizedSolver:
        """Read a student published with the GS/GAS paper: its averaged (EMA) parameters.

        Such a file says nothing about its schedule and t_eps, so they must be given; steps are compared with
        the file's if given.

        Parameters
        ----------
        path : path
            Training checkpoint (.pt); only tensors and plain containers in it are read.
        schedule, steps, t_eps, prediction_type, guidance_scale
            As in the constructor.
        theory_guidance : bool
            False for students trained with `use_theory_coef` off; they get compat="reference-s4s".

        Raises
        ------
        ValueError
            If the file is not such a checkpoint, or its sizes do not fit the number of steps.
        """
        tensors, order = read_reference_checkpoint(
            path_of("path", path), None if steps is None else whole_number("steps", steps)
        )
        compat = None if flag("theory_guidance", theory_guidance) else "reference-s4s"
        solver = cls(
            schedule,
            tensors["time_offsets"].numel(),
            order,
            t_eps,
            theory_guidance,
            prediction_type=prediction_type,
            guidance_scale=guidance_scale,
            compat=compat,
        )
        solver._fill(tensors, str(path))
        return solver

    def save_reference_checkpoint(
        self, path: str | os.PathLike[str], *, step: int = 0, ema_decay: float = 0.999
    ) -> None:
        """Write the solver in the form of the students published with the GS/GAS paper (.pt).

        The form holds float32 numbers, which `from_reference_checkpoint` reads back exactly. It cannot
        say schedule, steps, last time or guidance, which its reader must know.

        Parameters
        ----------
        path : path
            The file; it is replaced only when the new one is complete.
        step, ema_decay : int, float
            Number of iterations and decay of the average, which the form records.

        Raises
        ------
        ValueError
            If the solver is of a preset that the published code does not have: free weights, or corrections to
            another order of the theory than the third.
        """
        if not self.theory_guidance and self.compat is None:
            raise ValueError(
                "The published form has no free weights, only corrections to the theory; train with theory "
                "guidance to export."
            )
        if self.theory_order != 3:
            raise ValueError(
                f"The published form corrects DPM-Solver++ of order 3, but this solver corrects order "
                f"{self.theory_order}; rewrite it first with gas_ext.training.warm_start.from_solver."
            )
        tensors = {name: value.detach() for name, value in self.named_parameters()}
        write_reference_checkpoint(path_of("path", path), tensors, step, ema_decay)


def _plain_record(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping as a dict; TypeError unless it can go into the file's JSON."""
    if not isinstance(values, Mapping):
        raise TypeError(f"{name} is {values!r:.80}, but must be a mapping of plain values, such as a dict.")
    try:
        json.dumps(record := dict(values))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} cannot be written as JSON ({error}); give it plain values.") from None
    return record


def _short(value: Any) -> str:
    """Return a value as it may stand in a message."""
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
