"""Sampling with a solver: one network evaluation and one fused update per step."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gas_ext._utils.checks import flag
from gas_ext._utils.cuda_graphs import SolveGraphs
from gas_ext.denoisers import (
    UNNAMED,
    Condition,
    Denoiser,
    DenoiserFunction,
    check_device,
    check_noise,
    doubled_condition,
    per_sample,
)
from gas_ext.sampler.solve import PartialSolve
from gas_ext.solvers.baked import BakedCoefficients, can_bake, is_captured
from gas_ext.solvers.coefficients import (
    Solver,
    SolverCoefficients,
    StepWeights,
    check_guidance_scale,
    check_prediction_type,
)
from gas_ext.solvers.generalized import GeneralizedSolver


class Trajectory(NamedTuple):
    """All intermediate results of a solve.

    Attributes
    ----------
    states : tuple of Tensor
        x_0 (noise) to x_N (result), in the schedule's coordinates.
    data : tuple of Tensor
        What the solver stores of each evaluation: the data predictions D_0 to D_{N-1}, unless the solver
        documents otherwise (`IPNDMSolver`).
    timesteps : Tensor
        (N + 1,) float64, from the first time to t_eps.
    """

    states: tuple[Tensor, ...]
    data: tuple[Tensor, ...]
    timesteps: Tensor


class GASSampler(nn.Module):
    """Turn noise into samples with a solver and a network.

    Warns if the solver was learned for another network of the same schedule.

    Parameters
    ----------
    solver : GeneralizedSolver or MultistepSolver
        The solver, on the device of the noise.
    denoiser : Denoiser or callable
        denoiser(x, t, condition) -> output of the shape of x, where x_t = alpha(t) x_0 + sigma(t) eps and t
        is a float64 0-d tensor, both in the schedule's coordinates. A `Denoiser` also knows its prediction
        type and its unconditional condition, and encodes conditions.
    prediction_type : str, optional
        What the network predicts: "epsilon", "sample", "v_prediction" or "flow_prediction" (eps - x_0).
        Default: that of the `Denoiser` or of the solver, else "sample".
    guidance_scale : float, optional
        Scale w of classifier-free guidance, m_u + w (m - m_u). Default: that of the solver. None and 1 mean
        a single, conditional evaluation.
    recompute : bool
        Evaluate the network again in the backward pass instead of storing its activations. Default: False.
        Recommended when training runs out of memory: memory then hardly grows with the number of steps, at
        the cost of one more evaluation each.
    cuda_graph : bool
        Record the whole solve as a CUDA graph at the first call with each type of input (shapes, dtypes,
        plain values of the condition) and replay it afterwards; the latest four graphs are stored. Default:
        False. Recommended for small networks, which are bound by kernel launches. Written or moved
        parameters and the training mode of a module are followed; make a new sampler after any other change
        of solver or network, and call it from one stream at a time. A denoiser does not count replays in its
        `evaluations`; the sampler does. Without a GPU, with gradients, with a trajectory, or if recording
        fails, the solve runs step by step and warns once with the reason. This has never run on a GPU.

    Raises
    ------
    TypeError
        If `solver` is not a solver, `denoiser` is not callable, or `guidance_scale` is not a number.
    ValueError
        If the guidance scale is not finite, or the solver was made for another guidance scale, prediction
        type or schedule.

    Examples
    --------
    >>> from gas_ext import GeneralizedSolver, NoiseSchedule
    >>> solver = GeneralizedSolver(NoiseSchedule.flow(), steps=4, order=1)
    >>> sampler = GASSampler(solver, lambda x, t, condition: x, prediction_type="flow_prediction")
    >>> with torch.no_grad():
    ...     sampler(torch.ones(1, 2)).shape
    torch.Size([1, 2])
    """

    def __init__(
        self,
        solver: Solver,
        denoiser: DenoiserFunction,
        prediction_type: str | None = None,
        guidance_scale: float | None = None,
        *,
        recompute: bool = False,
        cuda_graph: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(solver, Solver) or not callable(denoiser):
            raise TypeError(
                f"Got a {type(solver).__name__} and a {type(denoiser).__name__}, but expected a "
                "GeneralizedSolver and then a callable denoiser: GASSampler(solver, denoiser)."
            )
        guidance_scale = check_guidance_scale(guidance_scale)
        if isinstance(denoiser, Denoiser):
            prediction_type = _agreed(
                "prediction_type", prediction_type, denoiser.prediction_type, "denoiser"
            )
            if denoiser.schedule != solver.schedule:
                raise ValueError(
                    f"The solver was made for {solver.schedule!r}, but {denoiser.name} has "
                    f"{denoiser.schedule!r}; make or train the solver with denoiser.schedule."
                )
            _compare_teachers(getattr(solver, "teacher", {}), denoiser)
        prediction_type = _agreed("prediction_type", prediction_type, solver.prediction_type, "solver")
        self.solver = solver
        self.denoiser = denoiser
        self.prediction_type = prediction_type or "sample"
        self.guidance_scale = _agreed("guidance_scale", guidance_scale, solver.guidance_scale, "solver")
        self.recompute = flag("recompute", recompute)
        self.evaluations = 0  # of the network so far, replayed ones too; a doubled, guided batch is one
        self._baked: BakedCoefficients | None = None
        self._captured: list[SolverCoefficients] = []
        self._graphs = SolveGraphs() if flag("cuda_graph", cuda_graph) else None
        check_prediction_type(solver.schedule, self.prediction_type)

    @classmethod
    def from_pretrained(cls, name: str, device: str | torch.device = "cpu") -> GASSampler:
        """Return a sampler that ships with the package.

        Parameters
        ----------
        name : str
            "demo": the embedded teacher and its four-step solver.
        device : device
            Where both are put. Default: the CPU.

        Raises
        ------
        ValueError
            If no sampler of that name exists.
        """
        if name != "demo":
            raise ValueError(f"There is no pretrained sampler {name!r}; expected 'demo'.")
        from gas_ext.teachers import demo

        teacher = demo.load_demo_teacher(device)
        solver = GeneralizedSolver.load(
            demo.WEIGHTS / "solver.safetensors", schedule=teacher.schedule, weights_hash=teacher.weights_hash
        )
        return cls(solver.to(device), teacher, prediction_type=teacher.prediction_type)

    @property
    def guided(self) -> bool:
        """Whether each step evaluates the doubled, unconditional and conditional, batch."""
        return self.guidance_scale is not None and self.guidance_scale != 1.0

    def coefficients(self) -> SolverCoefficients:
        """Return the coefficients of one solve for this sampler's network, with gradients where recorded."""
        return self.solver.coefficients(self.prediction_type, self.guidance_scale)

    def bake(self) -> SolverCoefficients:
        """Recompute the coefficients of a finished solver, and return a copy of them.

        The first solve bakes by itself (`gas_ext.solvers.baked`), and so does the first one after a change
        of the solver, a parameter, `prediction_type` or `guidance_scale`. Call this after changes that are
        not detected: of other attributes of the solver or its schedule and, on a GPU, of parameters through
        ``.data`` or by collectives. Coefficients are computed in every solve for parameters that learn (on a
        GPU, or where gradients are recorded) and for classes that are not this package's.
        """
        if not can_bake(self.solver):
            return self.coefficients()
        rows, timesteps, evaluation_timesteps, weights = self._bake()
        return SolverCoefficients(
            tuple(row.clone() for row in rows),
            timesteps.clone(),
            evaluation_timesteps.clone(),
            StepWeights(weights.state.clone(), weights.data.clone()),
        )

    def __getstate__(self) -> dict[str, Any]:
        """Leave baked coefficients out of copies, which compute their own."""
        return {**self.__dict__, "_baked": None, "_captured": []}

    def forward(
        self,
        noise: Tensor,
        condition: Condition = None,
        unconditional_condition: Condition = None,
        *,
        return_trajectory: bool = False,
    ) -> Tensor | tuple[Tensor, Trajectory]:
        """Solve from noise at t = 1 to a sample at t_eps.

        Differentiable in the noise, the solver's parameters and the network unless under `torch.no_grad`.

        Parameters
        ----------
        noise : Tensor
            (B, ...) standard normal, floating point; the states have its dtype. It is multiplied by
            `schedule.init_noise_sigma`.
        condition : optional
            Passed to the network; a `Denoiser` encodes it first (labels, prompts). With guidance: a tensor
            (B, ...), or (1, ...) for all samples, a plain value (None, number, str) that is the same in both
            halves, or a dict, list or tuple of these.
        unconditional_condition : optional
            The condition of guidance's other half, structured like `condition`; broadcasts over the batch.
            Default: that of the `Denoiser`.
        return_trajectory : bool
            Also return all states and data predictions. Default: False.

        Returns
        -------
        Tensor, or Tensor and Trajectory

        Raises
        ------
        TypeError
            If the noise is not a dense tensor of float64, float32, float16 or bfloat16, or the network does
            not return a tensor.
        ValueError
            If the noise has no batch dimension, does not have the shape of the `Denoiser`'s samples, or is
            not on the solver's device; if the number of labels is not that of the samples, guidance lacks
            its unconditional condition, or the network's output does not have the shape of its input.

        Warns
        -----
        RuntimeWarning
            Once, if noise on the CPU is not finite. Noise on a GPU is not read, which would stall it. Values
            that become infinite later, in the network or the solve, are returned without a warning.
        """
        self._check_noise(noise)
        condition = self._condition(condition, unconditional_condition, noise.shape[0])
        sample = self._replay(noise, condition, return_trajectory)
        if sample is not None:
            return sample
        table = self._coefficients()
        solve = self._solve(noise, condition, table, keep_all=return_trajectory)
        if not return_trajectory:
            return solve.states[-1]
        trajectory = Trajectory(tuple(solve.states), tuple(solve.data), table.timesteps.clone())
        return solve.states[-1], trajectory

    def begin(
        self, noise: Tensor, condition: Condition = None, unconditional_condition: Condition = None
    ) -> PartialSolve:
        """Begin a solve that is advanced step by step, with coefficients that may depend on its states.

        The solve uses the sampler's denoiser and settings of this moment.
        Takes the parameters of `forward` and raises its errors, those of device and network at the first
        step. `cuda_graph` has no effect.

        Examples
        --------
        >>> from gas_ext import GeneralizedSolver, NoiseSchedule
        >>> sampler = GASSampler(GeneralizedSolver(NoiseSchedule.vp_linear(), 3), lambda x, t, condition: x)
        >>> solve = sampler.begin(torch.ones(2, 4))
        >>> for _ in range(3):
        ...     solve.advance(sampler.coefficients())
        >>> torch.equal(solve.states[-1], sampler(torch.ones(2, 4)))
        True
        """
        self._check_noise(noise)
        return PartialSolve(self, noise, self._condition(condition, unconditional_condition, noise.shape[0]))

    def _check_noise(self, noise: Tensor) -> None:
        check_noise(noise)
        if isinstance(self.denoiser, Denoiser):
            self.denoiser.check_channels(noise)

    def _coefficients(self, *, recording: bool = False) -> SolverCoefficients:
        """Return the coefficients of a solve: baked ones where that is safe."""
        solver, baked = self.solver, self._baked
        # A graph computes those of a learned solver itself, so that its replays follow the parameters.
        if not can_bake(solver) or (recording and isinstance(solver, GeneralizedSolver)):
            return self.coefficients()
        if baked is not None and baked.hold(solver, self.prediction_type, self.guidance_scale):
            table = baked.coefficients
        else:
            table = self._bake()
        if is_captured(table.timesteps.device):
            self._captured.append(table)  # a graph reads it for as long as it lives
        return table

    def _bake(self) -> SolverCoefficients:
        self._baked = BakedCoefficients(self.solver, self.prediction_type, self.guidance_scale)
        return self._baked.coefficients

    def _replay(self, noise: Tensor, condition: Condition, return_trajectory: bool) -> Tensor | None:
        """Solve by a CUDA graph; None where that was not requested or is not possible."""
        if self._graphs is None or torch.compiler.is_compiling():
            return None
        if return_trajectory:
            self._graphs.explain("a trajectory is requested")
            return None

        def solve(noise: Tensor, condition: Condition) -> tuple[Tensor, SolverCoefficients]:
            table = self._coefficients(recording=True)
            return self._solve(noise, condition, table).states[-1], table

        # A tensor that was moved or replaced, and not only written to, needs another graph.
        addresses = tuple([tensor.data_ptr() for tensor in (*self.parameters(), *self.buffers())])
        modes = tuple([module.training for module in self.modules()])
        key = (self.prediction_type, self.guidance_scale, modes, addresses)
        before = self.evaluations
        sample = self._graphs.solve(solve, noise, condition, key)
        # Solves to warm up and to record are not counted, as they make no sample.
        self.evaluations = before if sample is None else before + self.solver.steps
        return sample

    def _solve(
        self, noise: Tensor, condition: Condition, table: SolverCoefficients, *, keep_all: bool = False
    ) -> PartialSolve:
        """Make all steps; the condition is what the network is given."""
        check_device(noise, table.timesteps.device)
        solve = PartialSolve(self, noise, condition, table=table, keep_all=keep_all)
        for time in table.evaluation_timesteps.clone().unbind():  # a network may write into its time
            solve._advance(table, time)
        return solve

    def _condition(self, condition: Condition, unconditional: Condition, batch: int) -> Condition:
        """Return what the network is given: encoded, and for guidance joined with its other half."""
        guided, denoiser = self.guided, self.denoiser
        if isinstance(denoiser, Denoiser):
            condition = denoiser.encode_condition(condition)
            if denoiser.condition_kind == "label" and condition is not None:
                per_sample(condition, batch)  # a check: one label serves all samples
            if guided and unconditional is None:
                unconditional = denoiser.unconditional_condition()
            else:
                unconditional = denoiser.encode_condition(unconditional)
        if not guided:
            return condition
        if condition is None or unconditional is None:
            missing = "condition" if condition is None else "unconditional_condition"
            raise ValueError(f"Guidance with scale {self.guidance_scale} needs {missing}, which is None.")
        return doubled_condition(unconditional, condition, batch)


def _agreed(name: str, given: Any, made_for: Any, owner: str) -> Any:
    """Return the value that is known; ValueError if both are and differ."""
    if None not in (given, made_for) and given != made_for:
        raise ValueError(
            f"The {owner} was made for {name} {made_for!r}, not {given!r}; "
            f"leave {name} out, or train a solver for it."
        )
    return made_for if given is None else given


def _compare_teachers(learned_for: Mapping[str, Any], denoiser: Denoiser) -> None:
    """Warn if a solver was learned for another network, where both are known: by weights, or else by name."""
    for key in ("weights_hash", "name"):
        theirs, ours = learned_for.get(key), getattr(denoiser, key)
        if not theirs or not ours or (key == "name" and ours == UNNAMED):
            continue
        if theirs != ours:
            warnings.warn(
                f"The solver was learned for {learned_for.get('name')!r} ({key} {str(theirs)[:12]}), not for "
                f"{denoiser.name!r} ({ours[:12]}), so its samples may be poor; learn one for this network.",
                stacklevel=3,
            )
        return
