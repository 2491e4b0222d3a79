"""The pipelines' own loops against our solvers at the same times: network, guidance and steps are equal."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EDMEulerScheduler, FluxPipeline
from golden_data import note
from tiny_pipelines import FAMILIES, PROMPTS, T5_TOKENS, ddim, noise_for, stable_diffusion, teacher_of

from gas_ext import GASSampler, GeneralizedSolver
from gas_ext.teachers.diffusers import from_diffusers, shift_timesteps
from gas_ext.teachers.diffusers.schedules import alphas_cumprod

# Of diffusers' own arithmetic with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

STEPS = 5


def exact(family, **options):
    """A teacher in float64 and its pipeline, whose table of alphas would be rounded to float32 otherwise."""
    teacher = teacher_of(family, **options).double()
    scheduler = teacher.parts.scheduler
    if hasattr(scheduler, "alphas_cumprod"):
        scheduler.alphas_cumprod = alphas_cumprod(scheduler)
        scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    return teacher, teacher.parts.pipeline


def solve(teacher, noise, condition, times, order=1, guidance_scale=None):
    """Solve at the given times of evaluation, and then to the last one."""
    steps = len(times) - 1
    solver = GeneralizedSolver(
        teacher.schedule, steps, order, float(times[-1]), theory_order=order, timesteps=times
    )
    sampler = GASSampler(solver, teacher, guidance_scale=guidance_scale)
    with torch.no_grad():
        return sampler(noise, condition, return_trajectory=True)


def ddim_times(steps=STEPS, levels=1000):
    """Trailing spacing: the levels 999, 799, ... of 0 to 999, and then the first."""
    return torch.tensor([1.0 - n / steps for n in range(steps)] + [1.0 / levels], dtype=torch.float64)


def flow_times(scheduler):
    """Sigmas of the last call; the data prediction belongs to the last one, 0."""
    return torch.cat([scheduler.sigmas[:-1].double(), torch.tensor([1e-3], dtype=torch.float64)])


def difference(ours, theirs):
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def check(record, family, loop, ours, theirs, limit, remark=""):
    """Assert that a loop's result is reached, and record the difference for the summary."""
    note(record, f"diffusers {family}", loop, difference(ours, theirs), remark)
    assert difference(ours, theirs) < limit


def latents_of(pipeline, noise, guidance_scale=3.0, **options):
    """The latents of a pipeline for prompts, before it decodes."""
    options = {"num_inference_steps": STEPS, "guidance_scale": guidance_scale, **options}
    return pipeline(PROMPTS, latents=noise, output_type="latent", **options)[0]


@pytest.mark.slow
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("family", ["stable-diffusion", "stable-diffusion-2", "sdxl", "text-to-video"])
def test_ddim_of_prompts(family, guidance_scale, golden_record):
    teacher, pipeline = exact(family)
    noise = noise_for(teacher, torch.float64)
    video = {"height": 16, "width": 16, "num_frames": 3} if family == "text-to-video" else {}
    theirs = latents_of(pipeline, noise, guidance_scale, **video)
    ours, _ = solve(teacher, noise, PROMPTS, ddim_times(), guidance_scale=guidance_scale)
    check(golden_record, family, "DDIM loop", ours, theirs, 1e-13, f"w {guidance_scale}")


def last_state(pipeline, monkeypatch, seed=0, **arguments):
    """Run a pipeline that returns images only, and return the last state of its scheduler."""
    states = []
    step = pipeline.scheduler.step

    def recording(*args, **kwargs):
        result = step(*args, **kwargs)
        states.append(result.prev_sample)
        return result

    monkeypatch.setattr(pipeline.scheduler, "step", recording)
    generator = torch.Generator().manual_seed(seed)
    pipeline(num_inference_steps=STEPS, output_type="np", generator=generator, **arguments)
    assert len(states) == STEPS
    return states[-1][:2]


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_ddim_of_labels(guidance_scale, monkeypatch, golden_record):
    teacher, pipeline = exact("dit")
    noise = noise_for(teacher, torch.float64, seed=5)
    theirs = last_state(pipeline, monkeypatch, 5, class_labels=[3, 7], guidance_scale=guidance_scale)
    ours, _ = solve(teacher, noise, [3, 7], ddim_times(), guidance_scale=guidance_scale)
    check(golden_record, "dit", "DDIM loop", ours, theirs, 1e-13, f"w {guidance_scale}")


def test_ddim_on_quantized_latents(monkeypatch, golden_record):
    teacher = teacher_of("ldm")  # the pipeline supports float32 only
    noise = noise_for(teacher)
    theirs = last_state(teacher.parts.pipeline, monkeypatch, batch_size=2)
    ours, _ = solve(teacher, noise, None, ddim_times())
    check(golden_record, "ldm", "DDIM loop", ours, theirs, 1e-5, "float32")


def check_euler(record, family, teacher, noise, theirs, guidance_scale):
    """Compare with a pipeline's Euler loop, and return the times of its steps."""
    times = flow_times(teacher.parts.scheduler)
    _, trajectory = solve(teacher, noise, PROMPTS, times, guidance_scale=guidance_scale)
    remark = f"w {guidance_scale}; its step is float32"
    check(record, family, "Euler loop", trajectory.data[-1], theirs, 1e-6, remark)
    return times


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_euler_of_sd3(guidance_scale, golden_record):
    teacher, pipeline = exact("sd3")
    noise = noise_for(teacher, torch.float64)
    theirs = latents_of(pipeline, noise, guidance_scale, **T5_TOKENS)
    check_euler(golden_record, "sd3", teacher, noise, theirs, guidance_scale)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_euler_of_flux(guidance_scale, golden_record):
    """Guided by true classifier-free guidance, on top of the distilled one."""
    teacher, pipeline = exact("flux", distilled_guidance=2.5)
    noise = noise_for(teacher, torch.float64)
    guided = {"negative_prompt": ["", ""], "true_cfg_scale": guidance_scale} if guidance_scale != 1.0 else {}
    packed = FluxPipeline._pack_latents(noise, 2, 4, 8, 8)
    tokens = latents_of(pipeline, packed, 2.5, height=16, width=16, **guided, **T5_TOKENS)
    theirs = FluxPipeline._unpack_latents(tokens, 16, 16, pipeline.vae_scale_factor)
    times = check_euler(golden_record, "flux", teacher, noise, theirs, guidance_scale)
    # The teacher's shift turns uniform times into those of the pipeline.
    uniform = 1.0 - torch.arange(STEPS, dtype=torch.float64) / STEPS
    torch.testing.assert_close(shift_timesteps(uniform, teacher.flow_shift), times[:-1], rtol=1e-6, atol=0)


def test_dpm_solver_of_second_order(golden_record):
    teacher, pipeline = exact("stable-diffusion")
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config, lower_order_final=False, final_sigmas_type="sigma_min"
    )
    noise = noise_for(teacher, torch.float64)
    theirs = latents_of(pipeline, noise)
    ours, _ = solve(teacher, noise, PROMPTS, ddim_times(), order=2, guidance_scale=3.0)
    remark = "w 3.0; its step is float32"
    check(golden_record, "stable-diffusion", "DPM-Solver++(2M)", ours, theirs, 5e-6, remark)
    first_order, _ = solve(teacher, noise, PROMPTS, ddim_times(), guidance_scale=3.0)
    assert difference(first_order, theirs) > 100 * difference(ours, theirs)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_edm_preconditioning(prediction_type, golden_record):
    """A text-to-image network trained with EDM's preconditioning (as Playground v2.5 is)."""
    scheduler = EDMEulerScheduler(prediction_type=prediction_type)
    teacher = from_diffusers(stable_diffusion(), scheduler=scheduler).double()
    assert teacher.prediction_type == "sample"
    noise, states = noise_for(teacher, torch.float64), []

    def record(pipeline, step, timestep, values):
        states.append(values["latents"])
        return values

    # It starts from sigma_max^2 + 1, we from sigma_max.
    latents = noise * scheduler.config.sigma_max / scheduler.init_noise_sigma
    latents_of(teacher.parts.pipeline, latents, callback_on_step_end=record)
    times = torch.linspace(1.0, 0.0, STEPS, dtype=torch.float64)[:-1]  # before sigma_min
    ours, _ = solve(teacher, noise, PROMPTS, times, guidance_scale=3.0)
    remark = f"{prediction_type}; its step is float32"
    check(golden_record, "EDM", "Euler loop", ours, states[STEPS - 3], 2e-6, remark)


@pytest.mark.parametrize("family", ["stable-diffusion", "dit"])
def test_float32_as_it_is(family, monkeypatch, golden_record):
    """Nothing replaced: diffusers' rounded table and arithmetic against ours in float64."""
    teacher = teacher_of(family)
    pipeline, noise = teacher.parts.pipeline, noise_for(teacher)
    _, _, condition = FAMILIES[family]
    if family == "dit":
        theirs = last_state(pipeline, monkeypatch, class_labels=condition, guidance_scale=3.0)
    else:
        theirs = latents_of(pipeline, noise)
    ours, _ = solve(teacher, noise, condition, ddim_times(), guidance_scale=3.0)
    check(golden_record, family, "float32 loop", ours, theirs, 1e-5, "w 3.0")


@pytest.mark.parametrize("family", ["ddpm", "signal"])
def test_steps_of_ddim_without_a_pipeline(family, golden_record):
    teacher, _ = exact(family)
    scheduler = teacher.parts.scheduler
    scheduler.set_timesteps(STEPS)
    noise = state = noise_for(teacher, torch.float64)
    with torch.no_grad():
        for time in scheduler.timesteps:
            output = teacher.network(state, time, return_dict=False)[0]
            state = scheduler.step(output, time, state).prev_sample
    ours, _ = solve(teacher, noise, None, ddim_times())
    check(golden_record, family, "DDIM loop", ours, state, 1e-13)


def test_fewer_noise_levels():
    """The last time is the first of the N levels, here 1/50."""
    pipeline = stable_diffusion(num_train_timesteps=50, beta_end=0.1)
    teacher = from_diffusers(pipeline).double()
    assert teacher.t_eps == 1.0 / 50.0
    assert ddim(num_train_timesteps=50).alphas_cumprod.shape == (50,)
    table = alphas_cumprod(pipeline.scheduler)
    torch.testing.assert_close(teacher.schedule.alpha(teacher.t_eps) ** 2, table[0], rtol=1e-14, atol=0)
    torch.testing.assert_close(teacher.schedule.alpha(1.0) ** 2, table[-1], rtol=1e-14, atol=0)
