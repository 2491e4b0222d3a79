"""The solver that training starts from."""

from __future__ import annotations

from gas_ext._utils.progress import Reporter
from gas_ext.configs import Config
from gas_ext.configs.training import STARTS
from gas_ext.denoisers import Denoiser
from gas_ext.samples import SampleBatch
from gas_ext.solvers.generalized import MAX_ORDER, GeneralizedSolver
from gas_ext.solvers.presets import DATA, get_preset
from gas_ext.training.baselines import Baseline, classical_solver, classical_solvers, select_baseline
from gas_ext.training.data import RunData
from gas_ext.training.warm_start import FIRST_LEVELS, fit_corrections, fit_start, with_steps

_SAMPLES = 64  # training samples on which the start is chosen and fitted


def make_start(
    config: Config, denoiser: Denoiser, data: RunData, steps: int, reporter: Reporter
) -> tuple[GeneralizedSolver, str]:
    """Make the start that ``config.training.start`` describes, in float64, and describe it in words.

    Its preset is ``config.student.preset``. Where that learns no weights, "fitted" is the same as
    "classical". ValueError if the start is a file that does not fit.
    """
    start = config.training.start
    batch = data.first_training(_SAMPLES)
    if start not in STARTS:
        solver = _from_file(config, denoiser)
        if solver.steps == steps:
            return solver, start
        # Corrections depend on the steps and are fitted again.
        solver = with_steps(solver, steps, min(steps, MAX_ORDER)).to(denoiser.device)
        solver.set_preset(config.student.preset)
        name = f"{start}, resampled to {steps} steps"
        if not _can_be_fitted(solver, reporter):
            return solver, name
        with reporter.task("Fitting the start", 1) as advance:
            size = config.training.batch_size
            fit_corrections(solver, denoiser, batch.noise, batch.condition, batch_size=size)
            advance()
        return solver, f"{name}, fitted"
    if start == "published":
        baseline = classical_solver(denoiser.schedule, steps, 3, "uniform", config.student.t_eps)
        return _learnable(baseline, config, denoiser), baseline.description
    baseline = _best_baseline(config, denoiser, batch, steps, reporter)
    solver = _learnable(baseline, config, denoiser)
    if start == "classical":
        return solver, baseline.description
    name = baseline.description
    if not _can_be_fitted(solver, reporter):
        return solver, name
    with reporter.task("Fitting the start", len(FIRST_LEVELS)) as advance:
        part = fit_start(
            solver,
            denoiser,
            batch.noise,
            batch.samples,
            batch.condition,
            batch_size=config.training.batch_size,
            progress=lambda part, distance: advance(1, note=f"L1 {distance:.4f}"),
        )
    level = "" if part == 1.0 else f", first evaluation at 1/{1 / part:.0f} of the noise level"
    return solver, f"{name}, fitted{level}"


def _can_be_fitted(solver: GeneralizedSolver, reporter: Reporter) -> bool:
    """Whether the weights can be fitted to fine trajectories; report it if only the schedule forbids it."""
    if DATA not in get_preset(solver.preset).learned:
        return False
    if solver.schedule.zero_terminal_snr:
        reporter.message(
            f"Training starts without fitting: lambda is infinite at t = 1 of {solver.schedule!r}."
        )
        return False
    return True


def _best_baseline(
    config: Config, denoiser: Denoiser, batch: SampleBatch, steps: int, reporter: Reporter
) -> Baseline:
    """Return the DPM-Solver++ closest to the teacher."""
    candidates = classical_solvers(denoiser.schedule, steps, config.student.t_eps)
    with reporter.task("Comparing classical solvers", len(candidates)) as advance:
        best, _ = select_baseline(
            candidates,
            denoiser,
            batch.noise,
            batch.samples,
            batch.condition,
            guidance_scale=config.teacher_solver.guidance_scale,
            batch_size=config.training.batch_size,
            progress=lambda baseline, distance: advance(1, note=f"L1 {distance:.4f}"),
        )
    return best


def _learnable(baseline: Baseline, config: Config, denoiser: Denoiser) -> GeneralizedSolver:
    """Return a classical solver as a learnable one, with free weights if the preset has them."""
    preset = config.student.preset
    return GeneralizedSolver(
        denoiser.schedule,
        baseline.solver.steps,
        t_eps=config.student.t_eps,
        theory_guidance=not get_preset(preset).free,
        theory_order=baseline.order,
        timesteps=baseline.spacing,
        prediction_type=denoiser.prediction_type,
        guidance_scale=config.teacher_solver.guidance_scale,
        preset=preset,
    ).to(denoiser.device)


def _from_file(config: Config, denoiser: Denoiser) -> GeneralizedSolver:
    """Load a learned solver, which may be for another data set or number of steps."""
    path, t_eps = config.training.start, config.student.t_eps
    solver = GeneralizedSolver.load(path, schedule=denoiser.schedule)
    if solver.t_eps != t_eps:
        raise ValueError(
            f"{path} ends at t_eps {solver.t_eps:g}, not {t_eps:g}; start from another solver, or set "
            f"student.t_eps={solver.t_eps:g}."
        )
    preset = config.student.preset
    more = set(get_preset(solver.preset).learned) - set(get_preset(preset).learned)
    if more or get_preset(preset).free == solver.theory_guidance:
        raise ValueError(
            f"{path} is a solver with preset {solver.preset}, which cannot be trained with preset {preset}; "
            f"start from another solver, or set student.preset={solver.preset}."
        )
    solver.set_preset(preset)
    solver.prediction_type = denoiser.prediction_type
    solver.guidance_scale = config.teacher_solver.guidance_scale
    solver.teacher, solver.training_summary = {}, {}
    return solver.double().to(denoiser.device)
