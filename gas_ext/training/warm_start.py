"""Starting a learned solver from another one, so that training has less to find.

The weights of any linear multistep solver can be written as DPM-Solver++ plus corrections; a learned solver's
times can be laid along another's; and the corrections of fixed times can be fitted to a teacher's trajectory
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

# Noise levels sigma / alpha that the first evaluation may be told, in parts of the level at t = 1.
FIRST_LEVELS = (1.0, 1 / 4, 1 / 8)
# A lower level has to be nearer by this factor: training from it takes shorter steps, and gains less.
_CLEARLY = 0.95
_SUBSTEPS, _RIDGE = 6, 1e-4  # see `fit_corrections`


def corrections_from_weights(
    schedule: NoiseSchedule, timesteps: Tensor, weights: StepWeights, theory_order: int = 3
) -> tuple[Tensor, Tensor]:
    """Write weights as the theory's plus corrections: the inverse of `guided_weights`.

    Parameters
    ----------
    schedule : NoiseSchedule
        The schedule of x.
    timesteps : Tensor
        (N + 1,) decreasing.
    weights : StepWeights
        (N, order) each.
    theory_order : int
        1, 2 or 3: order of the formula that is corrected.

    Returns
    -------
    tuple of Tensor
        Data and state corrections, (order, N) float64.

    Raises
    ------
    ValueError
        If the theory has no term that reaches a weight: the divided differences over a first step that is
        infinite in lambda (schedules with alpha(1) = 0) vanish.

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
    wanted = (weights.data - theory.data)[..., None]
    solution = torch.linalg.lstsq(basis.cpu(), wanted.cpu(), driver="gelsd").solution.to(wanted.device)
    off = (basis @ solution - wanted).abs().max().item()
    if off > 1e-9 * max(1.0, weights.data.abs().max().item()):
        raise ValueError(
            f"Corrections to the theory of order {theory_order} cannot express these weights (off by "
            f"{off:.2g}); use theory_order=1, whose corrections act on the data predictions themselves."
        )
    return solution[..., 0].T.contiguous(), (weights.state - theory.state).T.contiguous()


def from_solver(
    solver: GeneralizedSolver | MultistepSolver, order: int | None = None, theory_order: int = 3
) -> GeneralizedSolver:
    """Return a learnable solver that computes what another one does, number for number.

    Parameters
    ----------
    solver : GeneralizedSolver or MultistepSolver
        Any classical multistep solver on any times (DPM-Solver++, UniPC, DEIS, iPNDM), or a learned one.
    order : int, optional
        Order of the new solver; as many states and data predictions as the old one uses if not given, and at
        least `theory_order`, at most the number of steps.
    theory_order : int
        The formula that is corrected, see `GeneralizedSolver`.

    Raises
    ------
    ValueError
        If the order is too low for what the solver uses, its times cannot be learned, or its weights cannot
        be expressed; see `corrections_from_weights`.

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
        raise ValueError(f"order is {order}, but the solver to start from uses {used} of the past; raise it.")
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
    weights = StepWeights(_wide(state, order), _wide(data, order))
    with torch.no_grad():
        # The new solver's own times: stick breaking gives the old ones back up to rounding.
        corrections = corrections_from_weights(solver.schedule, new.timesteps(), weights, theory_order)
        new.data_corrections.copy_(corrections[0])
        new.state_corrections.copy_(corrections[1])
        if isinstance(solver, GeneralizedSolver):
            new.time_offsets.copy_(solver.time_offsets)
    return new


def _weights_on_data(solver: GeneralizedSolver | MultistepSolver) -> tuple[Tensor, Tensor]:
    """Return state and data weights; where a solver keeps something else than data, as weights on data."""
    weights = solver.weights()
    if isinstance(solver, GeneralizedSolver):
        return weights.state, weights.data
    kept, data = solver.stored_coefficients("sample")
    # What is kept is kept_j x_j + data_j D_j.
    back = range(weights.data.shape[1])
    on_data, on_state = weights.data.clone(), _wide(weights.state, max(weights.data.shape[1], 1))
    for n in range(solver.steps):
        for j in back:
            if j <= n:
                on_state[n, j] += weights.data[n, j] * kept[n - j]
                on_data[n, j] = weights.data[n, j] * data[n - j]
    return on_state, on_data


def _used(weights: Tensor) -> int:
    """Return the number of columns up to the last that is not zero everywhere."""
    places = weights.abs().amax(dim=0).nonzero()
    return int(places.max()) + 1 if len(places) else 1


def _wide(weights: Tensor, columns: int) -> Tensor:
    """Return the table with as many columns: zeros appended, or columns of zeros left out."""
    missing = columns - weights.shape[1]
    return torch.nn.functional.pad(weights, (0, missing)) if missing > 0 else weights[:, :columns].clone()


def with_steps(solver: GeneralizedSolver, steps: int, order: int | None = None) -> GeneralizedSolver:
    """Return a solver of another number of steps, laid along a learned one.

    The learned times are a curve over the part n / N of the solve, which is read at the new parts; so are the
    offsets. Corrections belong to their own steps: they start at zero, and `fit_corrections` fits new ones.

    Parameters
    ----------
    solver : GeneralizedSolver
        The learned solver, with theory guidance.
    steps : int
        Number of steps of the new one.
    order : int, optional
        Order of the new one; the old one's, at most `steps`, if not given.

    Raises
    ------
    ValueError
        If the solver has no theory guidance, so that its weights belong to its own times alone.

    Examples
    --------
    >>> learned = GeneralizedSolver(NoiseSchedule.vp_linear(), steps=4, timesteps="quadratic")
    >>> with_steps(learned, 6).timesteps().shape
    torch.Size([7])
    """
    if not solver.theory_guidance:
        raise ValueError(
            "A solver with free weights cannot be laid on other times; train it with theory guidance."
        )
    order = order or min(solver.order, steps)
    with torch.no_grad():
        old_times = solver.timesteps()
        old_parts = torch.linspace(0.0, 1.0, solver.steps + 1, dtype=torch.float64, device=old_times.device)
        new_parts = torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64, device=old_times.device)
        times = _read(old_parts, old_times, new_parts)
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
        new.time_offsets.copy_(_read(old_parts[:-1], solver.time_offsets.double(), new_parts[:-1]))
    return new


def _read(x: Tensor, y: Tensor, at: Tensor) -> Tensor:
    """Read a curve given at increasing x linearly at other places; constant beyond its ends."""
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
    """Fit the weights, step by step, to the trajectory of a solver with `substeps` times as many steps.

    At fixed times the next state is linear in the weights. So the weights that bring the states of step n
    nearest to the fine trajectory at t_{n+1}, in the mean square over all samples, follow from a small linear
    system, and the next step is fitted to what this one leaves. No gradients: N (1 + substeps)
    evaluations per sample in all, and a start for training far better than the theory's. 3 N + 2 tensors per
    sample are in memory at once.

    Parameters
    ----------
    solver : GeneralizedSolver
        Changed in place: what its preset learns of its corrections, or of its free weights.
    denoiser, condition, unconditional_condition, prediction_type, guidance_scale
        As for `GASSampler`.
    noise : Tensor
        (samples, ...); some tens of samples are enough.
    substeps : int
        Steps of DPM-Solver++(3M), uniform in lambda, between two times of the solver.
    ridge : float
        Weight of the distance to the weights it has, in units of the mean square of what is summed.
    batch_size : int
        Samples per network call.

    Raises
    ------
    ValueError
        If the solver's preset learns no weights, its weights are those of compat="reference-s4s", the schedule
        has alpha(1) = 0, where lambda is infinite, or the network returns something that is not finite.
    """
    sampler = GASSampler(solver, denoiser, prediction_type, guidance_scale)
    inputs = _batches(noise, condition, unconditional_condition, batch_size)
    _fit_weights(sampler, inputs, _fine_states(sampler, inputs, substeps), ridge)


Inputs = list[tuple[Tensor, Condition, Condition]]  # noise and conditions, batch by batch


def _batches(noise: Tensor, condition: Condition, unconditional: Condition, size: int) -> Inputs:
    """Cut noise and conditions into batches."""
    slices = [slice(start, start + size) for start in range(0, len(noise), size)]
    return [(noise[part], take(condition, part), unconditional) for part in slices]


def _fine_states(sampler: GASSampler, inputs: Inputs, substeps: int) -> list[tuple[Tensor, ...]]:
    """Return, batch by batch, what states a finer solver has at the times of the sampler's."""
    solver = sampler.solver
    assert isinstance(solver, GeneralizedSolver)
    if DATA not in get_preset(solver.preset).learned or solver.compat is not None:
        raise ValueError(
            f"A solver with preset {solver.compat or solver.preset} has no weights that can be fitted; leave it as "
            "it is."
        )
    if solver.schedule.zero_terminal_snr:
        raise ValueError(f"{solver.schedule!r} is infinite in lambda at t = 1; train without fitting first.")
    fine = GASSampler(
        _fine_solver(solver, substeps), sampler.denoiser, sampler.prediction_type, sampler.guidance_scale
    )
    wanted = []
    for batch in inputs:
        trajectory = fine(*batch, return_trajectory=True)[1]
        for n, data in enumerate(trajectory.data):
            _check_finite(data, n, trajectory.timesteps, f"the {fine.solver.steps} steps to be fitted to")
        wanted.append(trajectory.states[::substeps])
    return wanted


class _NotFiniteError(ValueError):
    """What a network returned cannot be fitted to: least squares of it end in an internal error of torch."""


def _check_finite(data: Tensor, n: int, times: Tensor, steps: str) -> None:
    if not bool(torch.isfinite(data).all()):
        raise _NotFiniteError(
            f"The network returned NaN or infinity at step {n + 1} of {steps} (t = {times[n].item():.4g}), "
            "so the start cannot be fitted: check the network's weights and inputs, and try it in float32."
        )


def _fit_weights(
    sampler: GASSampler, inputs: Inputs, wanted: list[tuple[Tensor, ...]], ridge: float
) -> Tensor:
    """Fit the weights of the sampler's solver, step by step, to these states; return its samples."""
    solver = sampler.solver
    assert isinstance(solver, GeneralizedSolver)
    learned = get_preset(solver.preset).learned
    weights = StepWeights(*(table.clone() for table in solver.weights()))
    solves = [sampler.begin(*batch) for batch in inputs]
    table = sampler.coefficients()
    for n in range(solver.steps):
        kept = min(n + 1, solver.order)
        now = torch.cat([weights.state[n, :kept], weights.data[n, :kept]])
        free = slice(None) if STATE in learned else slice(kept, None)
        moment = torch.zeros_like(now[free])
        gram = torch.diag(moment)
        for solve, states in zip(solves, wanted, strict=True):
            data = solve.evaluate(table)
            _check_finite(data, n, table.evaluation_timesteps, f"the solver's {solver.steps}")
            back = range(n, n - kept, -1)
            terms = [solve.states[j] for j in back] + [solve.data[j] for j in back]
            matrix = torch.stack([term.double().flatten() for term in terms], dim=1)
            left = states[n + 1].double().flatten() - matrix @ now
            gram += matrix[:, free].T @ matrix[:, free]
            moment += matrix[:, free].T @ left
        gram.diagonal().add_(ridge * gram.diagonal().mean())
        now[free] += torch.linalg.solve(gram, moment)
        weights.state[n, :kept], weights.data[n, :kept] = now[:kept], now[kept:]
        _set_weights(solver, weights)
        table = sampler.coefficients()
        for solve in solves:
            solve.advance(table)
    return torch.cat([solve.states[-1] for solve in solves])


def _set_weights(solver: GeneralizedSolver, weights: StepWeights) -> None:
    """Give a solver these weights at its own times."""
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
    """Fit the corrections for several offsets of the first evaluation, and keep the nearest to the teacher.

    Another offset than 0 is kept only if it is nearer by a twentieth.

    At t = 1 the network sees noise alone and can but answer with the mean of all data. Told that there is
    less noise, it takes the noise for a sample's and answers with something like that sample. With four
    steps that can be worth more than the true time, and training from an offset of 0 hardly finds it, for
    without weights that are fitted to it every step towards it is worse.

    Parameters
    ----------
    solver : GeneralizedSolver
        One whose weights are learned; changed in place. If its offsets are not learned, they stay.
    target : Tensor
        (samples, ...): the teacher's samples from this noise.
    denoiser, noise, condition, unconditional_condition, prediction_type, guidance_scale, batch_size
        As for `fit_corrections`.
    progress : callable, optional
        Called with each candidate's part of the noise level at t = 1 and its distance.

    Returns
    -------
    float
        The part of the noise level at t = 1 (sigma / alpha) that the first evaluation is told.

    Raises
    ------
    ValueError
        As `fit_corrections` does.
    """
    schedule = solver.schedule
    parts = FIRST_LEVELS if OFFSETS in get_preset(solver.preset).learned else (1.0,)
    start = {name: value.clone() for name, value in solver.state_dict().items()}
    sampler = GASSampler(solver, denoiser, prediction_type, guidance_scale)
    inputs = _batches(noise, condition, unconditional_condition, batch_size)
    wanted = _fine_states(sampler, inputs, _SUBSTEPS)  # the same for all offsets
    found: list[tuple[float, float, dict[str, Tensor]]] = []
    for part in parts:
        solver.load_state_dict(start)
        if part != 1.0:
            end = torch.ones((), dtype=torch.float64)
            level = schedule.lambda_(end) - math.log(part)
            solver.time_offsets[0] = schedule.inverse_lambda(level) - 1.0
        try:
            distance = l1_distance(_fit_weights(sampler, inputs, wanted, _RIDGE), target)
        except _NotFiniteError:
            if part == 1.0:
                raise
            distance = math.nan
        found.append((distance, part, {name: value.clone() for name, value in solver.state_dict().items()}))
        if progress is not None:
            progress(part, distance)
    _, part, best = min(found, key=_handicapped)
    solver.load_state_dict(best)
    return part


def _handicapped(candidate: tuple[float, float, dict[str, Tensor]]) -> tuple[bool, float]:
    """Return what candidates are ranked by; a distance that is not a number comes last."""
    distance, part, _ = candidate
    return math.isnan(distance), distance if part == 1.0 else distance / _CLEARLY


def _fine_solver(solver: GeneralizedSolver, substeps: int) -> GeneralizedSolver:
    """Return DPM-Solver++(3M) that passes through the solver's times, with `substeps` steps between two."""
    times = solver.timesteps()
    lam = solver.schedule.lambda_(times)
    parts = torch.arange(substeps, dtype=torch.float64, device=times.device) / substeps
    places = (lam[:-1, None] + lam.diff()[:, None] * parts).flatten()
    fine = torch.cat([solver.schedule.inverse_lambda(places), times[-1:]])
    fine[::substeps] = times
    return GeneralizedSolver(
        solver.schedule, len(fine) - 1, min(3, len(fine) - 1), solver.t_eps, timesteps=fine.cpu()
    ).to(times.device)
