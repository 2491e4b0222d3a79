"""Sampling with a solver: one network evaluation and one fused update per step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gas_ext._utils.cuda_graphs import SolveGraphs
from gas_ext.denoisers import Condition, Denoiser, DenoiserFunction, per_sample
from gas_ext.ops import UpdateResult, fused_update
from gas_ext.solvers.coefficient_cache import CoefficientCache
from gas_ext.solvers.coefficients import Solver, SolverCoefficients, check_prediction_type
from gas_ext.solvers.generalized import GeneralizedSolver, check_guidance_scale


class Trajectory(NamedTuple):
    """What a solve went through.

    Attributes
    ----------
    states : tuple of Tensor
        x_0 (noise) to x_N (result), in the schedule's coordinates.
    data : tuple of Tensor
        What the solver keeps of each evaluation: data predictions D_0 to D_{N-1}, except where it says
        otherwise (`IPNDMSolver`).
    timesteps : Tensor
        (N + 1,) float64, from the first time to t_eps.
    """

    states: tuple[Tensor, ...]
    data: tuple[Tensor, ...]
    timesteps: Tensor


class GASSampler(nn.Module):
    """Turns noise into samples with a solver and a network.

    Parameters
    ----------
    solver : GeneralizedSolver or MultistepSolver
        The solver, on the device of the noise.
    denoiser : Denoiser or callable
        denoiser(x, t, condition) -> output of the shape of x. x_t = alpha(t) x_0 + sigma(t) eps in the
        schedule's coordinates; t is a float64 0-d tensor, the schedule's own time. A `Denoiser` also says
        what it predicts, encodes conditions, and knows the unconditional one.
    prediction_type : str, optional
        What the network predicts: "epsilon", "sample", "v_prediction" or "flow_prediction" (eps - x_0). If
        not given, what the `Denoiser` says or the solver was made for, else "sample".
    guidance_scale : float, optional
        Classifier-free guidance: m_u + guidance_scale (m - m_u). If not given, what the solver was made for;
        None and 1 mean a single, conditional evaluation.
    recompute : bool
        Keep no activations of the network for the backward pass, but evaluate it again there: memory then
        hardly grows with the number of steps, for one more evaluation each. The solver's history is kept.
    cuda_graph : bool
        Record the whole solve as a CUDA graph at the first call with noise and condition of some kind
        (shapes, dtypes, plain values), and replay it at the next ones; the latest four graphs are kept.
        Numbers written into the parameters of solver and network are followed, and so are moved parameters
        and the training mode of a network that is a module. Make a new sampler after changing anything else
        about solver or network, and call it from one stream at a time. A denoiser does not count replays in
        its `evaluations`; the sampler does. Without a GPU, where gradients are recorded, where a trajectory
        is asked for, or where recording fails, the solve runs step by step and a warning says why, once. Not
        run on a GPU yet.

    Raises
    ------
    TypeError
        If the solver is none, the denoiser not callable, or the guidance scale no number.
    ValueError
        If the guidance scale is not finite, or the solver was made for another one, for another prediction
        type or for another schedule.

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
        prediction_type = _agreed("prediction_type", prediction_type, solver.prediction_type, "solver")
        self.solver = solver
        self.denoiser = denoiser
        self.prediction_type = prediction_type or "sample"
        self.guidance_scale = _agreed("guidance_scale", guidance_scale, solver.guidance_scale, "solver")
        self.recompute = recompute
        self.evaluations = 0  # of the network so far, replayed ones too; a doubled, guided batch is one
        self._cache = CoefficientCache()
        self._graphs = SolveGraphs() if cuda_graph else None
        check_prediction_type(solver.schedule, self.prediction_type)

    @classmethod
    def from_pretrained(cls, name: str, device: str | torch.device = "cpu") -> GASSampler:
        """Return a sampler that ships with the package.

        Parameters
        ----------
        name : str
            "demo": the embedded teacher and its four-step solver.
        device : device
            Where both are put.

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
        """Return the numbers of one solve for this sampler's network."""
        return self.solver.coefficients(self.prediction_type, self.guidance_scale)

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
            (B, ...) standard normal, floating point; the states keep its dtype. It is multiplied by
            `schedule.init_noise_sigma`.
        condition : optional
            Handed to the network; where guidance is used a tensor (B, ...), or (1, ...) for all samples, a
            plain value (None, number, str) that is the same in both halves, or a dict, list or tuple of such.
            A `Denoiser` encodes it first (labels, prompts).
        unconditional_condition : optional
            The condition of guidance's other half, structured like `condition`; broadcasts over the batch. A
            `Denoiser` has one of its own.
        return_trajectory : bool
            Also return all states and data predictions.

        Returns
        -------
        Tensor, or Tensor and Trajectory

        Raises
        ------
        TypeError
            If the noise is not a floating-point tensor, or the network returns something else than a tensor.
        ValueError
            If the noise has no batch dimension, stands on another device than the solver, guidance lacks its
            unconditional condition or has conditions of another batch, or the network's output has another
            shape.
        """
        _check_noise(noise)
        condition = self._condition(condition, unconditional_condition, noise.shape[0])
        sample, trajectory = self._replay(noise, condition, return_trajectory), None
        if sample is None:
            sample, trajectory = self._solve(noise, condition, self._table(), return_trajectory)
        return sample if trajectory is None else (sample, trajectory)

    def begin(
        self, noise: Tensor, condition: Condition = None, unconditional_condition: Condition = None
    ) -> PartialSolve:
        """Return a solve that is made step by step, by coefficients that may depend on its states.

        Parameters are those of `forward`, and so are the errors, those of device and network at the first
        step. `cuda_graph` has no effect on it.

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
        _check_noise(noise)
        return PartialSolve(self, noise, self._condition(condition, unconditional_condition, noise.shape[0]))

    def _table(self) -> SolverCoefficients:
        """Return the numbers of one solve, kept where that is safe."""
        return self._cache.get(self.solver, self.prediction_type, self.guidance_scale)

    def _replay(self, noise: Tensor, condition: Condition, return_trajectory: bool) -> Tensor | None:
        """Solve by a CUDA graph; None where that was not asked for or cannot be done."""
        if self._graphs is None or torch.compiler.is_compiling():
            return None
        if return_trajectory:
            self._graphs.explain("a trajectory is asked for")
            return None

        def solve(noise: Tensor, condition: Condition) -> tuple[Tensor, SolverCoefficients]:
            table = self._table()
            return self._solve(noise, condition, table)[0], table

        # A tensor that was moved or replaced, and not only written to, needs another graph.
        places = tuple([tensor.data_ptr() for tensor in (*self.parameters(), *self.buffers())])
        modes = tuple([module.training for module in self.modules()])
        key = (self.prediction_type, self.guidance_scale, modes, places)
        before = self.evaluations
        sample = self._graphs.solve(solve, noise, condition, key)
        # Solves to warm up and to record are not counted, for they make no sample.
        self.evaluations = before if sample is None else before + self.solver.steps
        return sample

    def _solve(
        self, noise: Tensor, condition: Condition, table: SolverCoefficients, return_trajectory: bool = False
    ) -> tuple[Tensor, Trajectory | None]:
        """Run all steps; the condition is what the network is given."""
        _check_device(noise, table.timesteps.device)
        times = table.evaluation_timesteps.clone().unbind()  # a network may write into its time
        scale = self.solver.schedule.init_noise_sigma
        x = noise if scale == 1.0 else noise * scale
        states, data = [x], []  # the whole trajectory, if asked for
        recent_states: list[Tensor] = [x]  # what the next update uses, from the newest back
        recent_data: list[Tensor] = []
        states_kept, data_kept = (kept.shape[1] for kept in table.weights)
        guided, lower = self.guided, self._lower_input_dtype(x)
        seen = x if lower is None else x.to(lower)
        for t, row in zip(times, table.rows, strict=True):
            output = self._evaluate(seen, t, condition)
            wanted = None if row is table.rows[-1] else lower
            update = fused_update(
                recent_states + recent_data, output, row, guided=guided, next_input_dtype=wanted
            )
            x = update.state
            seen = x if update.next_input is None else update.next_input
            # Older ones are let go, so that memory does not grow with the number of steps.
            recent_states = [x, *recent_states][:states_kept]
            recent_data = [update.data, *recent_data][: data_kept - 1]
            if return_trajectory:
                states.append(x)
                data.append(update.data)
        if return_trajectory:
            return x, Trajectory(tuple(states), tuple(data), table.timesteps.clone())
        return x, None

    def _condition(self, condition: Condition, unconditional: Condition, batch: int) -> Condition:
        """Return what the network is given: encoded, and for guidance joined with its other half."""
        if isinstance(self.denoiser, Denoiser):
            condition = self.denoiser.encode_condition(condition)
            if self.guided and unconditional is None:
                unconditional = self.denoiser.unconditional_condition()
            else:
                unconditional = self.denoiser.encode_condition(unconditional)
        if not self.guided:
            return condition
        if condition is None or unconditional is None:
            missing = "condition" if condition is None else "unconditional_condition"
            raise ValueError(f"Guidance with scale {self.guidance_scale} needs {missing}, which is None.")
        return _doubled(unconditional, condition, batch)

    def _lower_input_dtype(self, x: Tensor) -> torch.dtype | None:
        """Return the half precision to which the network would cast float32 states, if it says so."""
        if x.dtype != torch.float32 or not isinstance(self.denoiser, Denoiser):
            return None
        dtype = self.denoiser.input_dtype
        if dtype not in (torch.float16, torch.bfloat16):
            return None
        # Autocast may let it answer in a higher precision, which the state's dtype would have kept.
        device = x.device.type
        autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        return None if autocast else dtype

    def _evaluate(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Call the network once, on the doubled batch if guided, and check what it returns."""
        seen = torch.cat([x, x]) if self.guided else x
        if self.recompute and torch.is_grad_enabled():
            output = checkpoint(self.denoiser, seen, t, condition, use_reentrant=False)
        else:
            output = self.denoiser(seen, t, condition)
        if not torch.compiler.is_compiling():
            vars(self)["evaluations"] += 1  # a microsecond less than through nn.Module's own assignment
        _check_output(output, seen)
        return output


class PartialSolve:
    """The steps of a solve so far; see `GASSampler.begin`.

    Attributes
    ----------
    states : list of Tensor
        x_0, ..., x_n, of the noise's shape.
    data : list of Tensor
        D_0, ..., up to D_n once that has been evaluated.
    """

    def __init__(self, sampler: GASSampler, noise: Tensor, condition: Condition) -> None:
        self.states: list[Tensor] = [noise * sampler.solver.schedule.init_noise_sigma]
        self.data: list[Tensor] = []
        self._sampler = sampler
        self._condition = condition
        self._output: Tensor | None = None  # of the network, for the step that comes

    def evaluate(self, table: SolverCoefficients) -> Tensor:
        """Evaluate the network for the coming step, unless that is done, and return D_n.

        The weights of the step do not change it: `advance` may be given others.

        Parameters
        ----------
        table : SolverCoefficients
            The numbers of the solve, of which the times and the data prediction's p and q are used.

        Returns
        -------
        Tensor
            D_n, of the shape and dtype of the noise.

        Raises
        ------
        ValueError
            If all steps of the table have been made, or what `GASSampler` raises about device and network.
        """
        if self._output is None:
            n, x = len(self.states) - 1, self.states[-1]
            if n == len(table.rows):
                raise ValueError(f"All {n} steps of this solve have been made; begin another one.")
            _check_device(x, table.timesteps.device)
            seen = x.to(self._sampler._lower_input_dtype(x) or x.dtype)
            time = table.evaluation_timesteps[n].clone()  # a network may write into its time
            output = self._sampler._evaluate(seen, time, self._condition)
            self._output = output.clone()  # a network may reuse the memory of its output
            self.data.append(self._update(table).data)  # the same whatever the weights: the state is not kept
        return self.data[-1]

    def advance(self, table: SolverCoefficients) -> None:
        """Make the coming step, by its row of the table; what is raised is what `evaluate` raises."""
        self.evaluate(table)
        self.states.append(self._update(table).state)
        self._output = None

    def _update(self, table: SolverCoefficients) -> UpdateResult:
        assert self._output is not None
        n = len(self.states) - 1
        states_kept, data_kept = (kept.shape[1] for kept in table.weights)
        recent_data = self.data[n - 1 :: -1] if n else []
        history = self.states[::-1][:states_kept] + recent_data[: data_kept - 1]
        return fused_update(history, self._output, table.rows[n], guided=self._sampler.guided)


def _agreed(name: str, given: Any, made_for: Any, owner: str) -> Any:
    """Return the value that is known; ValueError if both are and differ."""
    if None not in (given, made_for) and given != made_for:
        raise ValueError(
            f"The {owner} was made for {name} {made_for!r}, not {given!r}; "
            f"leave {name} out, or train a solver for it."
        )
    return made_for if given is None else given


def _check_noise(noise: Tensor) -> None:
    if not isinstance(noise, Tensor):
        raise TypeError(f"The noise is a {type(noise).__name__}, but must be a tensor; use torch.randn.")
    if not noise.is_floating_point():
        raise TypeError(f"The noise is {noise.dtype}, but must be floating point; use torch.randn.")
    if noise.ndim == 0:
        raise ValueError("The noise is a single number, but needs a batch dimension; add one in front.")


def _check_device(noise: Tensor, device: torch.device) -> None:
    if noise.device != device:
        raise ValueError(f"The noise is on {noise.device} and the solver on {device}; move one of them.")


def _check_output(output: Any, seen: Tensor) -> None:
    if not isinstance(output, Tensor):
        raise TypeError(
            f"The network returned a {type(output).__name__}, but the denoiser must return a tensor; "
            "wrap the network to return e.g. its output's .sample, or its first element."
        )
    if output.shape != seen.shape:
        raise ValueError(
            f"The network returned shape {tuple(output.shape)} for an input of shape "
            f"{tuple(seen.shape)}; it must return one output per input."
        )


def _doubled(unconditional: Condition, condition: Condition, batch: int) -> Condition:
    """Return the condition of the doubled batch, unconditional half first, broadcast over the batch."""
    if isinstance(condition, Tensor) and isinstance(unconditional, Tensor):
        condition = per_sample(condition, batch)
        try:
            return torch.cat([unconditional.to(condition).expand_as(condition), condition])
        except RuntimeError as error:
            raise ValueError(
                f"The unconditional condition has shape {tuple(unconditional.shape)}, which does not "
                f"broadcast to the condition's {tuple(condition.shape)}."
            ) from error
    pair = (unconditional, condition)
    if all(isinstance(side, Mapping) for side in pair) and unconditional.keys() == condition.keys():
        return {name: _doubled(unconditional[name], value, batch) for name, value in condition.items()}
    if all(isinstance(side, (list, tuple)) for side in pair) and len(unconditional) == len(condition):
        return tuple(_doubled(*sides, batch) for sides in zip(unconditional, condition, strict=True))
    plain = all(side is None or isinstance(side, (bool, int, float, str)) for side in pair)
    if plain and unconditional == condition:  # an option of the network rather than something per sample
        return condition
    raise ValueError(
        f"Guidance cannot join an unconditional condition of type {type(unconditional).__name__} with a "
        f"condition of type {type(condition).__name__}; pass two tensors, equal plain values, or two like "
        "containers of these."
    )
