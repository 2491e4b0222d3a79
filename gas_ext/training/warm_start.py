"""Warm starts of training: from another solver, or fitted to trajectories.

The weights of any linear multistep solver can be written as DPM-Solver++ plus corrections; learned times can
be resampled to another number of steps; and the corrections at fixed times can be fitted to a fine trajectory
step by step, by least squares.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gas_ext._utils.distances import l1_distance
from gas_ext._utils.noise import take
from gas_ext.denoisers import Condition, DenoiserFunction
from gas_ext.sampler import GASSampler
from gas_ext.schedules import NoiseSchedule
from gas_ext.solvers import MultistepSolver
from gas_ext.solvers.coefficients import StepWeights, guided_weights
from gas_ext.solvers.generalized import GeneralizedSolver
from gas_ext.solvers.presets import DATA, OFFSETS, STATE, get_preset

__all__ = ["corrections_from_weights", "fit_corrections", "fit_start", "from_solver", "with_steps"]

# Noise levels sigma / alpha tried for the first evaluation, as fractions of the level at t = 1.
FIRST_LEVELS = (1.0, 1 / 4, 1 / 8)
# A lower level must reduce the distance by this factor: training from it takes shorter steps, and gains less.
_CLEARLY = 0.95
_SUBSTEPS, _RIDGE = 6, 1e-4  # see `fit_corrections`


def corrections_from_weights(
    schedule: NoiseSchedule, timesteps: Tensor, weights: StepWeights, theory_order: int = 3
) -> tuple[Tensor, Tensor]:
    """Write weights (N, order) as the theory's plus corrections: the inverse of `guided_weights`.

    Return data and state corrections, (order, N) float64, to the formula of order `theory_order` (1 to 3) at
    N + 1 decreasing timesteps.

    Raises
    ------
    ValueError
        If the theory has no term for a weight: divided differences vanish over a first step that is infinite
        in lambda (schedules with alpha(1) = 0).

    Examples
    --------
    >>> schedule, times = NoiseSchedule.vp_linear(), torch.tensor([1.0, 0.4, 0.1]).double()
    >>> weights = guided_weights(schedule, times, torch.ones(2, 2), torch.ones(2, 2))
    >>> data, state = corrections_from_weights(schedule, times, weights)
    >>> torch.allclose(data, torch.tensor([[1.0, 1.0], [0.0, 1.0]]).double())
    True
    """
    steps, order = weights.data.shape
    none = torch.zeros(order, steps, dtype=torch.float64, device=timesteps.device)
    theory = guided_weights(schedule, timesteps, none, none, theory_order)
    # guided_weights is affine in the corrections, step by step: one column of its matrix per row of theirs.
    columns = []
    for row in range(order):
        unit = none.clone()
        unit[row] = 1.0
        columns.append(guided_weights(schedule, timesteps, unit, none, theory_order).data - theory.data)
    basis = torch.stack(columns, dim=-1)  # (step, weight, correction)
    difference = (weights.data - theory.data)[..., None]
    solution = torch.linalg.lstsq(basis.cpu(), difference.cpu(), driver="gelsd").solution.to(basis.device)
    error = (basis @ solution - difference).abs().max().item()
    if error > 1e-9 * max(1.0, weights.data.abs().max().item()):
        raise ValueError(
            f"Corrections to the theory of order {theory_order} cannot express these weights (error "
            f"{error:.2g}); use theory_order=1, whose corrections act on the data predictions themselves."
        )
    return solution[..., 0].T.contiguous(), (weights.state - theory.state).T.contiguous()


def from_solver(
    solver: GeneralizedSolver | MultistepSolver, order: int | None = None, theory_order: int = 3
) -> GeneralizedSolver:
    """Return a learnable solver that gives the same samples as another solver.

    Parameters
    ----------
    solver : GeneralizedSolver or MultistepSolver
        Any classical multistep solver on any times (DPM-Solver++, UniPC, DEIS, iPNDM), or a learned one.
    order : int, optional
        Order of the new solver. Default: the number of past states and data predictions that the old one
        uses, at least `theory_order` and at most the number of steps.
    theory_order : int
        Order of the formula that is corrected, see `GeneralizedSolver`.

    Raises
    ------
    ValueError
        If the order is too low, the times cannot be learned, or the weights cannot be expressed; see
        `corrections_from_weights`.

    Examples
    --------
    >>> from gas_ext.solvers import UniPCSolver
    >>> from_solver(UniPCSolver(NoiseSchedule.vp_linear(), steps=5)).order
    4
    """
    timesteps = solver.timesteps().detach()
    with torch.no_grad():
        state, data = _weights_on_data(solver)
    used = max(_used(state), _used(data))
    order = order or min(max(used, theory_order), solver.steps)
    if order < used:
        raise ValueError(
            f"order is {order}, but the solver uses {used} past states or data predictions; raise it."
        )
    new = GeneralizedSolver(
        solver.schedule,
        solver.steps,
        order,
        solver.t_eps,
        theory_order=theory_order,
        timesteps=timesteps,
        prediction_type=solver.prediction_type,
        guidance_scale=solver.guidance_scale,
    ).to(timesteps.device)
    weights = StepWeights(_with_columns(state, order), _with_columns(data, order))
    with torch.no_grad():
        # At the new solver's own times: stick breaking returns the old ones up to rounding.
        corrections = corrections_from_weights(solver.schedule, new.timesteps(), weights, theory_order)
        new.data_corrections.copy_(corrections[0])
        new.state_corrections.copy_(corrections[1])
        if isinstance(solver, GeneralizedSolver):
            new.time_offsets.copy_(solver.time_offsets)
    return new


def _weights_on_data(solver: GeneralizedSolver | MultistepSolver) -> tuple[Tensor, Tensor]:
    """Return weights of states and data predictions, also for a solver whose history holds other terms."""
    weights = solver.weights()
    if isinstance(solver, GeneralizedSolver):
        return weights.state, weights.data
    state, data = solver.stored_coefficients("sample")  # entry j of the history is state_j x_j + data_j D_j
    columns = weights.data.shape[1]
    on_data, on_state = weights.data.clone(), _with_columns(weights.state, max(columns, 1))
    for n in range(solver.steps):
        for j in range(min(columns, n + 1)):
            on_state[n, j] += weights.data[n, j] * state[n - j]
            on_data[n, j] = weights.data[n, j] * data[n - j]
    return on_state, on_data


def _used(weights: Tensor) -> int:
    """Return the number of columns up to the last that is not zero everywhere."""
    indices = weights.abs().amax(dim=0).nonzero()
    return int(indices.max()) + 1 if len(indices) else 1


def _with_columns(weights: Tensor, columns: int) -> Tensor:
    """Return the table with this many columns: zeros appended, or last columns dropped."""
    missing = columns - weights.shape[1]
    return torch.nn.functional.pad(weights, (0, missing)) if missing > 0 else weights[:, :columns].clone()


def with_steps(solver: GeneralizedSolver, steps: int, order: int | None = None) -> GeneralizedSolver:
    """Return a solver with another number of steps, whose times and offsets are resampled from a learned one.

    Times and offsets are interpolated linearly as functions of n / N. Corrections are zero; use
    `fit_corrections` to fit new ones. The default order is the old one, at most `steps`.

    Raises
    ------
    ValueError
        If the solver has no theory guidance, so that its weights are valid only at its own times.

    Examples
    --------
    >>> learned = GeneralizedSolver(NoiseSchedule.vp_linear(), steps=4, timesteps="quadratic")
    >>> with_steps(learned, 6).timesteps().shape
    torch.Size([7])
    """
    if not solver.theory_guidance:
        raise ValueError(
            "A solver with free weights cannot be resampled to other times; train it with theory guidance."
        )
    order = order or min(solver.order, steps)
    with torch.no_grad():
        old_times = solver.timesteps()
        old_parts = torch.linspace(0.0, 1.0, solver.steps + 1, dtype=torch.float64, device=old_times.device)
        new_parts = torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64, device=old_times.device)
        times = _interpolate(old_parts, old_times, new_parts)
        times[0], times[-1] = 1.0, solver.t_eps
        new = GeneralizedSolver(
            solver.schedule,
            steps,
            order,
            solver.t_eps,
            theory_order=min(solver.theory_order, order),
            timesteps=times,
            prediction_type=solver.prediction_type,
            guidance_scale=solver.guidance_scale,
            preset=solver.preset,
        ).to(old_times.device)
        offsets = _interpolate(old_parts[:-1], solver.time_offsets.double(), new_parts[:-1])
        new.time_offsets.copy_(offsets)
    return new


def _interpolate(x: Tensor, y: Tensor, at: Tensor) -> Tensor:
    """Interpolate linearly between points at increasing x; constant beyond them."""
    if len(x) == 1:
        return y.expand(len(at)).clone()
    right = torch.searchsorted(x, at).clamp(1, len(x) - 1)
    part = ((at - x[right - 1]) / (x[right] - x[right - 1])).clamp(0.0, 1.0)
    return y[right - 1] + part * (y[right] - y[right - 1])


@torch.no_grad()
def fit_corrections(
    solver: GeneralizedSolver,
    denoiser: DenoiserFunction,
    noise: Tensor,
    condition: Condition = None,
    unconditional_condition: Condition = None,
    *,
    prediction_type: str | None = None,
    guidance_scale: float | None = None,
    substeps: int = _SUBSTEPS,
    ridge: float = _RIDGE,
    batch_size: int = 32,
) -> None:
    """Fit the weights in place to the trajectory of a solver with `substeps` times as many steps.

    At fixed times the next state is linear in the weights. So a small linear system gives the weights that
    bring step n closest to the fine trajectory at t_{n+1}, in the mean square over all samples; then the next
    step is fitted. It takes N (1 + substeps) evaluations per sample without gradients, and holds 3 N + 2
    tensors per sample.

    Parameters
    ----------
    solver : GeneralizedSolver
        The corrections or free weights that its preset learns are changed in place.
    denoiser, condition, unconditional_condition, prediction_type, guidance_scale
        As for `GASSampler`.
    noise : Tensor
        (samples, ...); 64 samples are enough.
    substeps : int
        Steps of DPM-Solver++(3M), uniform in lambda, between two times of the solver.
    ridge : float
        Penalty on changes of the weights, in units of the mean square of the summed terms.
    batch_size : int
        Samples per network call.

    Raises
    ------
    ValueError
        If the preset learns no weights, the solver has compat="reference-s4s", the schedule has alpha(1) = 0
        (lambda is infinite), or the network's output is not finite.
    """
    sampler = GASSampler(solver, denoiser, prediction_type, guidance_scale)
    inputs = _batches(noise, condition, unconditional_condition, batch_size)
    _fit_weights(sampler, inputs, _fine_states(sampler, inputs, substeps), ridge)


_Inputs = list[tuple[Tensor, Condition, Condition]]  # noise and conditions, batch by batch


def _batches(noise: Tensor, condition: Condition, unconditional: Condition, size: int) -> _Inputs:
    slices = [slice(start, start + size) for start in range(0, len(noise), size)]
    return [(noise[part], take(condition, part), unconditional) for part in slices]


def _fine_states(sampler: GASSampler, inputs: _Inputs, substeps: int) -> list[tuple[Tensor, ...]]:
    """Return, batch by batch, the states of a finer solver at the times of the sampler's solver."""
    solver = sampler.solver
    assert isinstance(solver, GeneralizedSolver)
    if DATA not in get_preset(solver.preset).learned or solver.compat is not None:
        setting = f"compat={solver.compat!r}" if solver.compat else f"preset {solver.preset}"
        raise ValueError(f"A solver with {setting} has no weights to fit; train it without fitting.")
    if solver.schedule.zero_terminal_snr:
        raise ValueError(f"Lambda is infinite at t = 1 of {solver.schedule!r}; train without fitting.")
    fine = GASSampler(
        _fine_solver(solver, substeps), sampler.denoiser, sampler.prediction_type, sampler.guidance_scale
    )
    states = []
    for batch in inputs:
        trajectory = fine(*batch, return_trajectory=True)[1]
        for n, data in enumerate(trajectory.data):
            _check_finite(data, n, trajectory.timesteps, f"the fine trajectory's {fine.solver.steps}")
        states.append(trajectory.states[::substeps])
    return states


class _NotFiniteError(ValueError):
    """The network's output cannot be fitted to: its least squares would end in an internal error of torch."""


def _check_finite(data: Tensor, n: int, times: Tensor, steps: str) -> None:
    if not bool(torch.isfinite(data).all()):
        raise _NotFiniteError(
            f"The network returned NaN or infinity at step {n + 1} of {steps} (t = {times[n].item():.4g}), "
            "so the start cannot be fitted; check the network's weights and inputs, and try float32."
        )


def _fit_weights(
    sampler: GASSampler, inputs: _Inputs, targets: list[tuple[Tensor, ...]], ridge: float
) -> Tensor:
    """Fit the weights of the sampler's solver, step by step, to these states; return its samples."""
    solver = sampler.solver
    assert isinstance(solver, GeneralizedSolver)
    learned = get_preset(solver.preset).learned
    weights = StepWeights(*(table.clone() for table in solver.weights()))
    solves = [sampler.begin(*batch) for batch in inputs]
    table = sampler.coefficients()
    for n in range(solver.steps):
        order = min(n + 1, solver.order)
        row = torch.cat([weights.state[n, :order], weights.data[n, :order]])
        free = slice(None) if STATE in learned else slice(order, None)
        moment = torch.zeros_like(row[free])
        gram = torch.diag(moment)
        for solve, states in zip(solves, targets, strict=True):
            data = solve.evaluate(table)
            _check_finite(data, n, table.evaluation_timesteps, f"the solver's {solver.steps}")
            back = range(n, n - order, -1)
            terms = [solve.states[j] for j in back] + [solve.data[j] for j in back]
            matrix = torch.stack([term.double().flatten() for term in terms], dim=1)
            residual = states[n + 1].double().flatten() - matrix @ row
            gram += matrix[:, free].T @ matrix[:, free]
            moment += matrix[:, free].T @ residual
        gram.diagonal().add_(ridge * gram.diagonal().mean())
        row[free] += torch.linalg.solve(gram, moment)
        weights.state[n, :order], weights.data[n, :order] = row[:order], row[order:]
        _set_weights(solver, weights)
        table = sampler.coefficients()
        for solve in solves:
            solve.advance(table)
    return torch.cat([solve.states[-1] for solve in solves])


def _set_weights(solver: GeneralizedSolver, weights: StepWeights) -> None:
    """Set a solver's weights at its own times."""
    times = solver.timesteps()
    if solver.theory_guidance:
        data, state = corrections_from_weights(solver.schedule, times, weights, solver.theory_order)
    else:
        ratio = solver.schedule.sigma(times[1:]) / solver.schedule.sigma(times[:-1])
        data, state = weights.data.T, weights.state.T.clone()
        state[0] -= ratio
    solver.data_corrections.copy_(data)
    if STATE in get_preset(solver.preset).learned:
        solver.state_corrections.copy_(state)


@torch.no_grad()
def fit_start(
    solver: GeneralizedSolver,
    denoiser: DenoiserFunction,
    noise: Tensor,
    target: Tensor,
    condition: Condition = None,
    unconditional_condition: Condition = None,
    *,
    prediction_type: str | None = None,
    guidance_scale: float | None = None,
    batch_size: int = 32,
    progress: Callable[[float, float], None] | None = None,
) -> float:
    """Fit the corrections for several noise levels of the first evaluation, and use the best.

    A lower level is used only if it is at least 5 % closer to the teacher.

    At t = 1 the input is pure noise, so the network can only return the data mean. Evaluated at a lower noise
    level, it treats the noise as structure. With four steps this can be better than the true level, and
    training from an offset of 0 hardly finds it: without fitted weights every step towards it is worse.

    Parameters
    ----------
    solver : GeneralizedSolver
        Changed in place. Its preset learns weights; offsets that it does not learn stay unchanged.
    target : Tensor
        (samples, ...): the teacher's samples from this noise.
    denoiser, noise, condition, unconditional_condition, prediction_type, guidance_scale, batch_size
        As for `fit_corrections`.
    progress : callable, optional
        Called with each candidate's fraction of the noise level at t = 1 and its distance.

    Returns
    -------
    float
        Noise level (sigma / alpha) of the first evaluation, as a fraction of the level at t = 1.

    Raises
    ------
    ValueError
        As for `fit_corrections`.
    """
    schedule = solver.schedule
    parts = FIRST_LEVELS if OFFSETS in get_preset(solver.preset).learned else (1.0,)
    start = {name: value.clone() for name, value in solver.state_dict().items()}
    sampler = GASSampler(solver, denoiser, prediction_type, guidance_scale)
    inputs = _batches(noise, condition, unconditional_condition, batch_size)
    targets = _fine_states(sampler, inputs, _SUBSTEPS)  # the same for all levels
    candidates: list[tuple[float, float, dict[str, Tensor]]] = []
    for part in parts:
        solver.load_state_dict(start)
        if part != 1.0:
            end = torch.ones((), dtype=torch.float64)
            level = schedule.lambda_(end) - math.log(part)
            solver.time_offsets[0] = schedule.inverse_lambda(level) - 1.0
        try:
            distance = l1_distance(_fit_weights(sampler, inputs, targets, _RIDGE), target)
        except _NotFiniteError:
            if part == 1.0:
                raise
            distance = math.nan
        values = {name: value.clone() for name, value in solver.state_dict().items()}
        candidates.append((distance, part, values))
        if progress is not None:
            progress(part, distance)
    _, part, best = min(candidates, key=_handicapped)
    solver.load_state_dict(best)
    return part


def _handicapped(candidate: tuple[float, float, dict[str, Tensor]]) -> tuple[bool, float]:
    """Return the ranking key of a candidate; NaN comes last."""
    distance, part, _ = candidate
    return math.isnan(distance), distance if part == 1.0 else distance / _CLEARLY


def _fine_solver(solver: GeneralizedSolver, substeps: int) -> GeneralizedSolver:
    """Return a DPM-Solver++(3M) through the solver's times, with `substeps` steps between two."""
    times = solver.timesteps()
    lam = solver.schedule.lambda_(times)
    parts = torch.arange(substeps, dtype=torch.float64, device=times.device) / substeps
    between = (lam[:-1, None] + lam.diff()[:, None] * parts).flatten()
    fine = torch.cat([solver.schedule.inverse_lambda(between), times[-1:]])
    fine[::substeps] = times
    return GeneralizedSolver(
        solver.schedule, len(fine) - 1, min(3, len(fine) - 1), solver.t_eps, timesteps=fine.cpu()
    ).to(times.device)
