"""Schedulers of diffusers as noise schedules: tables, times, prediction types, shifts, refusals."""

import inspect
import math

import diffusers
import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    IPNDMScheduler,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from golden_data import note
from tiny_pipelines import refused, stable_diffusion

from gas_ext import NoiseSchedule
from gas_ext.solvers.coefficients import data_prediction_coefficients
from gas_ext.teachers.diffusers import shift_timesteps
from gas_ext.teachers.diffusers.schedules import alphas_cumprod, read_scheduler

# Of diffusers' own arithmetic with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

BETA_SCHEDULES = ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"]
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
DISCRETE = """
    DDIM DDPM DEISMultistep DPMSolverMultistep DPMSolverSinglestep EulerAncestralDiscrete EulerDiscrete
    HeunDiscrete KDPM2Discrete LMSDiscrete PNDM SASolver UniPCMultistep
"""
DISCRETE = [f"{name}Scheduler" for name in DISCRETE.split()]
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


def relative(ours, theirs):
    return ((ours - theirs.double()).abs() / theirs.double()).max().item()


@pytest.mark.parametrize("levels", [1000, 77])
@pytest.mark.parametrize("name", BETA_SCHEDULES)
def test_beta_schedules(name, levels, golden_record):
    scheduler = DDPMScheduler(levels, beta_start=0.00085, beta_end=0.012, beta_schedule=name)
    table = alphas_cumprod(scheduler)
    error = relative(table, scheduler.alphas_cumprod)
    remark = f"{name}, N = {levels}"
    note(golden_record, "diffusers beta schedules", "alphas_cumprod, relative", error, remark)
    assert table.dtype == torch.float64
    assert 0.0 < error < 2e-5  # float32's rounding, which ours is free of


def test_float64_tables_are_products_of_exact_betas():
    table = alphas_cumprod(DDPMScheduler(beta_start=1e-4, beta_end=0.02))
    logs = [math.log1p(-(1e-4 + (0.02 - 1e-4) * k / 999)) for k in range(1000)]
    assert abs(math.log(table[-1].item()) / math.fsum(logs) - 1.0) < 1e-13


@pytest.mark.parametrize("name", DISCRETE)
def test_every_discrete_scheduler_is_read(name):
    reading = read_scheduler(getattr(diffusers, name)(**BETAS))
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    assert reading.schedule == NoiseSchedule.vp_discrete((1.0 - betas).cumprod(0))
    assert reading.prediction_type == "epsilon"
    assert reading.flow_shift is None


def test_knots_and_network_times():
    scheduler = DDIMScheduler()
    preconditioning = read_scheduler(scheduler)
    k = torch.arange(1000, dtype=torch.float64)
    t = (k + 1.0) / 1000.0
    assert (preconditioning.network_time(t) - k).abs().max() < 1e-12
    torch.testing.assert_close(
        preconditioning.schedule.alpha(t) ** 2, alphas_cumprod(scheduler), rtol=1e-13, atol=0
    )
    assert preconditioning.network_time(torch.tensor(0.4005, dtype=torch.float64)).item() == pytest.approx(
        399.5
    )


@pytest.mark.parametrize("cls", [DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler])
def test_zero_terminal_snr(cls, golden_record):
    scheduler = cls(**BETAS, rescale_betas_zero_snr=True, prediction_type="v_prediction")
    table = alphas_cumprod(scheduler)
    assert table[-1] == 0.0  # where some schedulers write 2^-24
    error = (table - scheduler.alphas_cumprod.double()).abs().max().item()
    note(golden_record, "diffusers beta schedules", "zero SNR, absolute", error, cls.__name__)
    assert error < 1e-6
    assert read_scheduler(scheduler).schedule.zero_terminal_snr


def test_a_noise_prediction_at_zero_terminal_snr_is_refused():
    refused("A noise prediction says nothing", stable_diffusion(rescale_betas_zero_snr=True))


def test_trained_betas():
    betas = torch.linspace(0.01, 0.2, 30, dtype=torch.float64)
    scheduler = DDIMScheduler(30, trained_betas=betas.numpy())
    torch.testing.assert_close(alphas_cumprod(scheduler), (1.0 - betas).cumprod(0), rtol=1e-14, atol=0)


@pytest.mark.parametrize("known", [True, False])
def test_tables_that_the_configuration_does_not_explain_are_taken_as_they_are(known):
    if known:  # a beta schedule we know, which the scheduler changes in a way of its own
        scheduler = CogVideoXDDIMScheduler(snr_shift_scale=3.0, rescale_betas_zero_snr=False)
    else:
        scheduler = DDIMScheduler()
        scheduler.register_to_config(beta_schedule="a new one")
    assert torch.equal(alphas_cumprod(scheduler), scheduler.alphas_cumprod.double())


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_prediction_types_mean_what_they_do_in_diffusers(prediction_type):
    """Data from a network's output, by our coefficients and by two schedulers."""
    scheduler = DDIMScheduler(prediction_type=prediction_type, clip_sample=False)
    preconditioning = read_scheduler(scheduler)
    generator = torch.Generator().manual_seed(0)
    x, output = torch.randn(2, 4, 3, dtype=torch.float64, generator=generator)
    t = torch.tensor([0.5], dtype=torch.float64)
    p, q = data_prediction_coefficients(preconditioning.schedule, t, t, prediction_type)
    ours = p * x + q * output
    scheduler.set_timesteps(2)
    ddim = scheduler.step(output, 499, x).pred_original_sample
    torch.testing.assert_close(ours, ddim, rtol=1e-5, atol=1e-6)
    multistep = DPMSolverMultistepScheduler.from_config(scheduler.config)
    multistep.set_timesteps(timesteps=[999, 499])
    multistep._step_index = 1
    converted = multistep.convert_model_output(output, sample=x)
    torch.testing.assert_close(ours, converted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        DPMSolverMultistepScheduler(**FLOW, flow_shift=3.0),
        UniPCMultistepScheduler(**FLOW, flow_shift=3.0),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_flow_schedulers(scheduler):
    reading = read_scheduler(scheduler)
    assert reading.schedule == NoiseSchedule.flow()
    assert reading.prediction_type == "flow_prediction"
    assert reading.network_time(torch.tensor(0.25)) == 250.0
    assert reading.flow_shift(16) == 3.0


@pytest.mark.parametrize("shift_type", ["exponential", "linear"])
def test_dynamic_shifts(shift_type):
    options = {"use_dynamic_shifting": True, "time_shift_type": shift_type}
    scheduler = FlowMatchEulerDiscreteScheduler(**options)
    shift = read_scheduler(scheduler).flow_shift
    silent = UniPCMultistepScheduler(**FLOW, **options)  # it has the switch, but not the numbers
    for tokens in (16, 256, 1000, 4096):
        times = torch.linspace(1.0, 0.1, 7, dtype=torch.float64)
        scheduler.set_timesteps(sigmas=times.tolist(), mu=calculate_shift(tokens))
        shifted = shift_timesteps(times, shift(tokens))
        assert read_scheduler(silent).flow_shift(tokens) == shift(tokens)
        torch.testing.assert_close(shifted.float(), scheduler.sigmas[:-1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_edm_schedulers(prediction_type):
    scheduler = EDMDPMSolverMultistepScheduler(prediction_type=prediction_type, sigma_max=10.0)
    preconditioning = read_scheduler(scheduler)
    assert preconditioning.schedule == NoiseSchedule.edm(0.002, 10.0, 7.0)
    assert preconditioning.prediction_type == "sample"
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, dtype=torch.float64, generator=generator)
    t = torch.tensor([0.9, 0.3], dtype=torch.float64)
    seen = []

    def network(state, time):
        seen.extend([state, time])
        return torch.sin(state) + time[:, None, None]

    ours = preconditioning(network, x, t)
    for i, sigma in enumerate(preconditioning.schedule.sigma(t)):
        state = scheduler.precondition_inputs(x[i], sigma)
        time = scheduler.precondition_noise(sigma)
        torch.testing.assert_close(seen[0][i], state, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(seen[1][i], time, rtol=1e-12, atol=1e-12)
        theirs = scheduler.precondition_outputs(x[i], torch.sin(state) + time, sigma)
        torch.testing.assert_close(ours[i], theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (IPNDMScheduler(), "IPNDMScheduler cannot be read"),
        (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "runs backwards"),
        (
            EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"),
            "time of type 'continuous'",
        ),
        (EDMDPMSolverMultistepScheduler(prediction_type="sample"), "prediction type is 'sample'"),
        (DDIMScheduler(prediction_type="residual"), "prediction type is 'residual'"),
        (UniPCMultistepScheduler(use_flow_sigmas=True), "prediction type is 'epsilon' at sigmas of flow"),
        (
            DPMSolverMultistepScheduler(prediction_type="flow_prediction"),
            "prediction type is 'flow_prediction'",
        ),
    ],
)
def test_other_schedulers_are_refused_by_name(scheduler, message):
    with pytest.raises(ValueError, match=message) as error:
        read_scheduler(scheduler)
    assert "Denoiser.from_callable" in str(error.value)


def schedulers_of_diffusers():
    """Every one that is made without arguments."""
    for name in dir(diffusers):
        cls = getattr(diffusers, name, None)
        if name.endswith("Scheduler") and inspect.isclass(cls):
            try:
                yield cls()
            except Exception:  # needs arguments or packages
                continue


def refusal(scheduler):
    """Why it is refused, or None."""
    try:
        read_scheduler(scheduler)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.slow
def test_every_scheduler_of_diffusers_is_read_or_refused():
    """None fails with another error, whatever diffusers adds."""
    refusals = {type(scheduler).__name__: refusal(scheduler) for scheduler in schedulers_of_diffusers()}
    assert set(DISCRETE) <= {name for name, refused in refusals.items() if refused is None}
    assert all("cannot be read as a noise schedule" in why for why in refusals.values() if why)
    assert refusals["ScoreSdeVeScheduler"] is not None
