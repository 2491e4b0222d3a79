"""A learned few-step solver: its parameters, their coefficients, and its file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
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
    Timesteps,
    check_interval,
    inverse_stick_breaking,
    keep_inside,
    spaced_timesteps,
    stick_breaking,
)

if TYPE_CHECKING:
    from typing_extensions import Self

# Constructor arguments that a file records under their own names.
_SETTINGS = (
    "steps",
    "order",
    "t_eps",
    "theory_guidance",
    "theory_order",
    "compat",
    "prediction_type",
    "guidance_scale",
)

MAX_ORDER = 32  # one fused update takes 64 terms: order states and order - 1 older data


class GeneralizedSolver(nn.Module):
    """Timesteps, time offsets and weights of an N-step solver, trained by back-propagating through the solve.

    Untrained it is DPM-Solver++ (multistep) at the given timesteps. GAS, arXiv 2510.17699, section 3.

    Parameters
    ----------
    schedule : NoiseSchedule
        Schedule of the states.
    steps : int
        Number N of network evaluations, at least 1.
    order : int, optional
        Number of states and data predictions that a step may use, 1 to min(N, 32). Default: the highest.
    t_eps : float
        Last timestep. Default: 1e-3.
    theory_guidance : bool
        True (default): learned corrections are added to the DPM-Solver++ weights of the *current* timesteps.
        False: the data corrections are the weights themselves (a linear multistep solver as in S4S). They are
        initialized with the weights of the theory and do not follow the timesteps.
    theory_order : int
        Order 1 to 3 of the underlying DPM-Solver++. Default: 3.
    timesteps : str or sequence of float
        Initial timesteps: "uniform" (default), "quadratic", "logsnr", "edm", or N + 1 numbers.
    prediction_type : str, optional
        What the network of this solver predicts, if known; see `GASSampler`.
    guidance_scale : float, optional
        Guidance scale this solver is meant for.
    compat : str, optional
        "reference-s4s": compute what the published code computes without theory guidance.
    preset : str
        Which parameters are trained, a name of `gas_ext.solvers.presets.PRESETS`; the others do not require a
        gradient. The presets of S4S need theory_guidance=False, those of DPM-Solver++ True. Default: "gs".

    Attributes
    ----------
    timestep_logits : Parameter
        (N - 1,) stick-breaking logits, the first for the last timestep before t_eps.
    time_offsets : Parameter
        (N,) added to the time at which the network is evaluated at step n.
    data_corrections, state_corrections : Parameter
        (order, N); row i acts on D_{n-i} (or its divided difference) and x_{n-i}; see
        `gas_ext.solvers.coefficients.guided_weights`.
    teacher, training_summary : dict
        Origin of the solver, as recorded in its file.

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
        timesteps: Timesteps = "uniform",
        prediction_type: str | None = None,
        guidance_scale: float | None = None,
        compat: str | None = None,
        preset: str = "gs",
    ) -> None:
        super().__init__()
        check_schedule(schedule)
        # Plain Python numbers from here on: the file's JSON holds neither NumPy's nor tensors.
        steps, t_eps = whole_number("steps", steps), real_number("t_eps", t_eps)
        theory_order = whole_number("theory_order", theory_order)
        check_interval(schedule, steps, t_eps)
        highest = min(steps, MAX_ORDER)
        order = highest if order is None else whole_number("order", order)
        if not 1 <= order <= highest:
            raise ValueError(
                f"order is {order}, but must be between 1 and {highest} (the steps, at most {MAX_ORDER})."
            )
        if theory_order not in (1, 2, 3):
            raise ValueError(f"theory_order is {theory_order}, but must be 1, 2 or 3.")
        if compat not in (None, "reference-s4s"):
            raise ValueError(f"compat is {compat!r}, but only 'reference-s4s' is known.")
        if prediction_type is not None:
            check_prediction_type(schedule, prediction_type)
        self.schedule, self.steps, self.order, self.t_eps = schedule, steps, order, t_eps
        self.theory_guidance = flag("theory_guidance", theory_guidance) and compat is None
        self.theory_order, self.compat = theory_order, compat
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

    def _initial_timesteps(self, timesteps: Timesteps) -> Tensor:
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
        """Choose which parameters are trained; see `preset` above.

        Raises
        ------
        ValueError
            If the preset is unknown or needs another `theory_guidance`.
        """
        free = get_preset(preset).free
        if free is not None and free == self.theory_guidance:
            raise ValueError(
                f"A solver with preset {preset} needs theory_guidance={not free}, but this one has "
                f"{self.theory_guidance}; build another one."
            )
        self.preset = preset
        self.requires_grad_()

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Set `requires_grad` of the parameters that the preset trains; the others never require one."""
        learned = get_preset(self.preset).learned
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(requires_grad and name in learned)
        return self

    @torch.no_grad()
    def _start_from_theory(self) -> None:
        """Set the free data weights to those of the theory at the current timesteps."""
        times, zeros = self.timesteps(), torch.zeros_like(self.data_corrections)
        weights = guided_weights(self.schedule, times, zeros, zeros, self.theory_order).data.T
        if self.compat is not None:
            weights = weights / data_scale(self.schedule, times)
        self.data_corrections.copy_(weights)

    def timesteps(self) -> Tensor:
        """Return the timesteps of the states: (N + 1,) float64, strictly decreasing from 1 to t_eps."""
        return stick_breaking(self.timestep_logits, self.t_eps)

    def evaluation_timesteps(self) -> Tensor:
        """Return the times of the network evaluations: t_n + offset_n inside the schedule, (N,) float64."""
        return self._evaluation_timesteps(self.timesteps())

    def _evaluation_timesteps(self, timesteps: Tensor) -> Tensor:
        times = timesteps[:-1] + self.time_offsets.to(torch.float64)
        return keep_inside(times, self.schedule, self.t_eps)

    def weights(self, timesteps: Tensor | None = None) -> StepWeights:
        """Return the weights of all updates, corrections included; default: at the solver's timesteps."""
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
        """Return the coefficients of all steps, differentiable, in float64, on the device of the parameters.

        Parameters
        ----------
        prediction_type : str, optional
            As in `GASSampler`. Default: the solver's own.
        guidance_scale : float, optional
            Classifier-free guidance scale. Default: 1.

        Raises
        ------
        ValueError
            If the prediction type is unknown, or not usable on this schedule.
        """
        prediction_type = prediction_type or self.prediction_type
        if prediction_type is None:
            raise ValueError("This solver does not know what the network predicts; pass prediction_type.")
        times = self.timesteps()
        seen = self._evaluation_timesteps(times)
        p, q = data_prediction_coefficients(self.schedule, times[:-1], seen, prediction_type)
        weights = self.weights(times)
        return SolverCoefficients(fused_rows(p, q, weights, guidance_scale), times, seen, weights)

    def extra_repr(self) -> str:
        """Return the settings that `print(solver)` shows."""
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
            The file.
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
            **{name: getattr(self, name) for name in _SETTINGS},
            "kind": self.preset,
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
        """Read a solver file, bit for bit as saved.

        Parameters
        ----------
        path : path
            A file written by `save`.
        schedule, prediction_type, guidance_scale, weights_hash : optional
            If given, the solver must have been made for these (the last: hash of the teacher's weights).

        Returns
        -------
        GeneralizedSolver

        Raises
        ------
        TypeError
            If guidance_scale is not a number.
        ValueError
            If the file is damaged, not a solver, of another format version, or made for something else.
        FileNotFoundError
            If the file does not exist.
        """
        if schedule is not None:
            check_schedule(schedule)
        if weights_hash is not None and not isinstance(weights_hash, str):
            raise TypeError(f"weights_hash is {weights_hash!r}, but must be a str; pass that of a teacher.")
        expected = {
            "schedule": None if schedule is None else schedule.to_dict(),
            "prediction_type": prediction_type,
            "guidance_scale": check_guidance_scale(guidance_scale),
            "weights_hash": weights_hash,
        }
        record, tensors = read_solver_file(path_of("path", path))
        found = {**record, "weights_hash": record["teacher"].get("weights_hash")}
        for name, value in expected.items():
            if value is not None and found[name] != value:
                raise ValueError(f"{path} was made for {name} {_short(found[name])}, not {_short(value)}.")
        try:
            settings = {name: record[name] for name in _SETTINGS}
            solver = cls(NoiseSchedule.from_dict(record["schedule"]), **settings, preset=record["kind"])
        except (ArithmeticError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{path} does not describe a valid solver: {reason_of(error)}.") from error
        solver.teacher, solver.training_summary = record["teacher"], record["training"]
        solver._fill(tensors)
        return solver

    def _fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace all parameters, dtype included, by those of a file."""
        for name, parameter in self.named_parameters():
            parameter.data = tensors[name].clone()

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

        Such a file does not record its schedule and t_eps; pass those it was trained with.

        Parameters
        ----------
        path : path
            Training checkpoint (.pt); only tensors and plain containers in it are read.
        schedule, t_eps, prediction_type, guidance_scale
            As in the constructor.
        steps : int, optional
            Number of steps that the file must have. Default: any.
        theory_guidance : bool
            False for students trained with `use_theory_coef` off, which get compat="reference-s4s".
            Default: True.

        Raises
        ------
        ValueError
            If the file is not such a checkpoint, or has another number of steps.
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
        solver._fill(tensors)
        return solver

    def save_reference_checkpoint(
        self, path: str | os.PathLike[str], *, step: int = 0, ema_decay: float = 0.999
    ) -> None:
        """Write the solver in the format of the students published with the GS/GAS paper (.pt), atomically.

        The format holds float32 parameters, which `from_reference_checkpoint` reads back exactly, and records
        neither schedule, t_eps nor guidance.

        Parameters
        ----------
        path : path
            The file.
        step, ema_decay : int, float
            Number of training iterations (default: 0) and decay of the average (default: 0.999) to record.

        Raises
        ------
        ValueError
            If the published code has no such solver: with free weights, or with `theory_order` 1 or 2.
        """
        if not self.theory_guidance and self.compat is None:
            raise ValueError(
                "The published format has no free weights, only corrections to the theory; train with theory "
                "guidance to export."
            )
        if self.theory_order != 3:
            raise ValueError(
                f"The published format corrects DPM-Solver++ of order 3, but this solver corrects order "
                f"{self.theory_order}; convert it first with gas_ext.training.warm_start.from_solver."
            )
        tensors = {name: value.detach() for name, value in self.named_parameters()}
        write_reference_checkpoint(path_of("path", path), tensors, step, ema_decay)


def _plain_record(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping as a dict; TypeError unless the file's JSON can hold it."""
    if not isinstance(values, Mapping):
        raise TypeError(f"{name} is {values!r:.80}, but must be a mapping of plain values, such as a dict.")
    try:
        json.dumps(record := dict(values))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} cannot be written as JSON ({error}); pass plain values.") from None
    return record


def _short(value: Any) -> str:
    """Return a value as a short JSON text for messages."""
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
