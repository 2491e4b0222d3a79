"""Every family of diffusers, end to end: gradients, training, decoding, precision, refusals."""

import copy

import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDPMScheduler,
    EDMDPMSolverMultistepScheduler,
    ModelMixin,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.configuration_utils import ConfigMixin, register_to_config
from tiny_pipelines import (
    FAMILIES,
    PROMPTS,
    TOKENS,
    WIDTH,
    autoencoder,
    condition_of,
    conditional_unet,
    ddim,
    noise_for,
    refused,
    sdxl,
    sdxl_unet,
    stable_diffusion,
    stable_diffusion_with_safety_checker,
    teacher_of,
    unet_1d,
    unet_2d,
)

from gas_ext import GASSampler, GeneralizedSolver
from gas_ext._utils.noise import take
from gas_ext.teachers.diffusers import NETWORKS, DiffusersTeacher, NetworkInterface, from_diffusers
from gas_ext.teachers.folder import save_teacher
from gas_ext.training import TrainingConfig, train_solver


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_solver_is_trained_saved_and_loaded(family, tmp_path):
    teacher = teacher_of(family)
    condition = condition_of(family, teacher)
    guidance_scale = None if condition is None else 2.0
    noise = noise_for(teacher)
    with torch.no_grad():
        long = GeneralizedSolver(teacher.schedule, 3, t_eps=teacher.t_eps)
        target = GASSampler(long, teacher, guidance_scale=guidance_scale)(noise, condition)
    assert target.shape == noise.shape
    assert torch.isfinite(target).all()
    solver = GeneralizedSolver(teacher.schedule, 2, t_eps=teacher.t_eps)
    before = [value.detach().clone() for value in solver.parameters()]
    config = TrainingConfig(iterations=2, batch_size=1)
    train_solver(solver, teacher, noise, target, condition, config=config, guidance_scale=guidance_scale)
    assert not any(map(torch.equal, before, solver.parameters()))
    solver.save(tmp_path / "solver.safetensors")
    loaded = GeneralizedSolver.load(tmp_path / "solver.safetensors", schedule=teacher.schedule)
    assert loaded.guidance_scale == guidance_scale
    with torch.no_grad():
        ours, again = (GASSampler(each, teacher)(noise, condition) for each in (solver, loaded))
    assert torch.equal(ours, again)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_state_and_time(family):
    teacher = teacher_of(family).double()
    condition = condition_of(family, teacher)
    x = noise_for(teacher, torch.float64).requires_grad_()
    t = torch.tensor([0.3, 0.7], dtype=torch.float64, requires_grad=True)
    teacher(x, t, condition).square().sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())
    # Time passes through float32 inside the networks, so the differences are wide ones.
    with torch.no_grad():
        step = 2e-4
        later, earlier = (teacher(x, t + sign * step, condition).square() for sign in (1, -1))
        slopes = (later - earlier).flatten(1).sum(1) / (2.0 * step)
    torch.testing.assert_close(t.grad, slopes, rtol=0.02, atol=0.02 * slopes.abs().max().item())
    assert t.grad.abs().min() > 0


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_states_are_float32_and_inputs_come_from_the_update(family, monkeypatch):
    single, teacher = teacher_of(family), teacher_of(family, dtype=torch.bfloat16)
    noise, t = noise_for(teacher), torch.tensor(0.5, dtype=torch.float64)
    sampler, results = GASSampler(GeneralizedSolver(teacher.schedule, 2, t_eps=0.1), teacher), []
    with torch.no_grad():
        full, low = (each(noise, t, condition_of(family, each)) for each in (single, teacher))
        for dtype in (torch.bfloat16, None):
            assert teacher.input_dtype == dtype
            results.append(sampler(noise, FAMILIES[family][2]))
            monkeypatch.setattr(DiffusersTeacher, "input_dtype", None)
    assert next(teacher.network.parameters()).dtype == torch.bfloat16
    assert low.dtype == results[0].dtype == torch.float32
    assert 0 < (low - full).abs().max() < 0.1 * full.abs().max()
    assert torch.equal(*results)


def test_a_preconditioning_takes_its_input_in_full_precision():
    scheduler = EDMDPMSolverMultistepScheduler()
    assert teacher_of("ddpm", scheduler=scheduler, dtype=torch.bfloat16).input_dtype is None


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_networks_are_evaluated_between_their_noise_levels(family):
    teacher = teacher_of(family)
    x, condition = noise_for(teacher), condition_of(family, teacher)
    times = torch.tensor([0.4002, 0.4004, 0.4006], dtype=torch.float64)  # all round to one level
    outputs = [teacher(x, t, condition) for t in times]
    assert not torch.equal(outputs[0], outputs[1])
    # Halfway in time is about halfway in output: nothing is rounded.
    middle = 0.5 * (outputs[0] + outputs[2])
    assert (outputs[1] - middle).abs().max() < 0.2 * (outputs[2] - outputs[0]).abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["dit", "sd3"])
def test_compiles_without_graph_breaks(family):
    teacher = teacher_of(family)
    x, t = noise_for(teacher), torch.tensor(0.5, dtype=torch.float64)
    condition = condition_of(family, teacher)
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(teacher, fullgraph=True, backend="eager")(x, t, condition)
        torch.testing.assert_close(compiled, teacher(x, t, condition))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_depends_on_the_device_or_on_values(family):
    """The meta device has no numbers, and refuses tensors of another device."""
    teacher = teacher_of(family)
    condition = condition_of(family, teacher)
    guidance_scale = None if condition is None else 2.0
    teacher.unconditional_condition()  # prompts are encoded before the move
    solver = GeneralizedSolver(teacher.schedule, 2, t_eps=teacher.t_eps).to("meta")
    sampler = GASSampler(solver, teacher.to("meta"), guidance_scale=guidance_scale)
    samples = sampler(noise_for(teacher).to("meta"), take(condition, slice(0, 1)))
    assert samples.shape == (2, *teacher.sample_shape)
    assert teacher.decode(samples).is_meta


def test_a_learned_variance_is_cut_off():
    network = unet_2d(out_channels=6)
    teacher = from_diffusers(network, scheduler=DDPMScheduler(variance_type="learned_range"))
    x, t = noise_for(teacher), torch.tensor(0.5, dtype=torch.float64)
    whole = network(x, 499.0 * torch.ones(2), return_dict=False)[0]
    torch.testing.assert_close(teacher(x, t), whole[:, :3])


@pytest.mark.parametrize("family", ["ldm", "dit", "stable-diffusion", "sd3", "flux", "text-to-video"])
def test_decoding_is_the_vae_of_the_pipeline(family):
    teacher = teacher_of(family)
    pipeline, latents = teacher.parts.pipeline, noise_for(teacher)
    vae = pipeline.vqvae if family == "ldm" else pipeline.vae
    with torch.no_grad():
        ours = teacher.decode(latents)
        if family == "text-to-video":
            theirs = pipeline.decode_latents(latents)
        else:
            shift = getattr(vae.config, "shift_factor", None) or 0.0
            theirs = vae.decode(latents / vae.config.scaling_factor + shift).sample
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert teacher.decode(latents.requires_grad_()).requires_grad
    assert teacher.truncates == (family == "stable-diffusion")


def test_images_are_those_that_a_pipeline_returns():
    teacher = teacher_of("sdxl")
    pipeline = teacher.parts.pipeline
    arguments = {"latents": noise_for(teacher), "num_inference_steps": 2, "guidance_scale": 1.0}
    latents = pipeline(PROMPTS, output_type="latent", **arguments).images
    images = pipeline(PROMPTS, output_type="pt", **arguments).images
    ours = (0.5 * teacher.decode(latents) + 0.5).clamp(0, 1)
    torch.testing.assert_close(ours, images, rtol=1e-4, atol=1e-5)


def test_latents_with_statistics():
    statistics = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.0, 2.0, 0.5, 1.5]}
    vae = autoencoder(scaling_factor=0.5, **statistics)
    teacher = from_diffusers(conditional_unet(), scheduler=ddim(), vae=vae)
    latents = noise_for(teacher)
    mean, std = (torch.tensor(values).reshape(1, 4, 1, 1) for values in statistics.values())
    theirs = vae.decode(latents * std / 0.5 + mean).sample
    torch.testing.assert_close(teacher.decode(latents), theirs)


def test_a_vae_that_overflows_in_half_precision_decodes_in_single():
    teacher = from_diffusers(sdxl())
    latents = noise_for(teacher).requires_grad_()
    teacher.vae.half()  # rounds its weights
    exact = copy.deepcopy(teacher.vae).float()
    images = teacher.decode(latents)
    assert torch.equal(images, exact.decode(latents / exact.config.scaling_factor).sample)
    assert torch.autograd.grad(images.sum(), latents)[0].abs().sum() > 0
    assert teacher.vae.dtype == torch.float16  # as the pipeline, which shares it, expects


def test_in_bfloat16_flux_alone_rounds_its_time():
    """Two times that bfloat16 does not distinguish; the other networks embed them in float32."""
    times = torch.tensor([0.7002, 0.7008], dtype=torch.float64)
    assert times[0].bfloat16() == times[1].bfloat16()
    for family, rounds in (("flux", True), ("sd3", False)):
        teacher = teacher_of(family, dtype=torch.bfloat16)
        x, condition = noise_for(teacher), teacher.encode_condition(PROMPTS)
        with torch.no_grad():
            first, second = (teacher(x, t, condition) for t in times)
        assert torch.equal(first, second) == rounds


def test_teachers_are_frozen_and_move_as_one():
    teacher = teacher_of("sdxl")
    assert not teacher.network.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    classes = {type(module).__name__ for module in teacher.modules()}
    expected = {"UNet2DConditionModel", "AutoencoderKL", "CLIPTextModel", "CLIPTextModelWithProjection"}
    assert expected <= classes
    double = copy.deepcopy(teacher).double()
    assert {parameter.dtype for parameter in double.parameters()} == {torch.float64}
    assert double.encode_condition("a")["text_embeds"].dtype == torch.float64
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.float32}
    assert double.parts.network is double.network is not teacher.network


@pytest.mark.slow
def test_defaults_come_from_the_pipeline():
    scales = {family: teacher_of(family).guidance_scale for family in FAMILIES}
    expected = {"dit": 4.0, "stable-diffusion": 7.5, "sdxl": 5.0, "sd3": 7.0, "flux": None, "ddpm": None}
    assert {family: scales[family] for family in expected} == expected
    teacher = from_diffusers(stable_diffusion(), guidance_scale=2.0, name="mine", t_eps=0.01)
    assert (teacher.guidance_scale, teacher.name, teacher.t_eps) == (2.0, "mine", 0.01)
    assert from_diffusers(stable_diffusion()).name == "UNet2DConditionModel"
    assert teacher_of("sd3").flow_shift == 3.0
    assert teacher_of("stable-diffusion").flow_shift is None
    assert isinstance(from_diffusers(stable_diffusion()), DiffusersTeacher)


@pytest.mark.slow
def test_another_scheduler_leaves_the_pipeline_alone():
    pipeline = stable_diffusion()
    own = pipeline.scheduler
    teacher = from_diffusers(pipeline, scheduler=ddim(prediction_type="v_prediction"))
    assert teacher.prediction_type == "v_prediction"
    assert pipeline.scheduler is own
    for build in (stable_diffusion, unet_2d):
        refused("The scheduler is a str", build(), TypeError, scheduler="ddim")
    pipeline.scheduler = None
    refused("alone does not state its noise schedule", pipeline)


def test_safety_checkers_are_left_out(tmp_path):
    pipeline = stable_diffusion_with_safety_checker()
    checker = pipeline.safety_checker
    teacher = from_diffusers(pipeline)
    assert pipeline.safety_checker is checker
    assert pipeline.config.requires_safety_checker
    assert teacher.parts.pipeline.safety_checker is None
    plain = from_diffusers(stable_diffusion())
    folders = [save_teacher(each, tmp_path / str(i)) for i, each in enumerate((teacher, plain))]
    assert not (folders[0] / "pipeline" / "safety_checker").exists()
    assert teacher.weights_hash == plain.weights_hash
    pipeline.save_pretrained(tmp_path / "pipeline")
    assert from_diffusers(tmp_path / "pipeline").parts.pipeline.safety_checker is None


@pytest.mark.parametrize(
    ("message", "build", "options"),
    [
        (r"AutoencoderKL is not supported, only UNet1DModel.*from_callable", autoencoder, {}),
        ("further inputs", conditional_unet, {"in_channels": 9}),
        ("learned embedding", unet_2d, {"time_embedding_type": "learned", "num_train_timesteps": 10}),
        ("class_embed_type is 'timestep'", unet_2d, {"class_embed_type": "timestep"}),
        ("time_cond_proj_dim is 8", conditional_unet, {"time_cond_proj_dim": 8}),
        ("encoder_hid_dim_type is 'text_proj'", conditional_unet, {"encoder_hid_dim": WIDTH}),
        ("addition_embed_type is 'text'", conditional_unet, {"addition_embed_type": "text"}),
        ("does not state the size", unet_2d, {"sample_size": None}),
    ],
)
def test_unsupported_networks_are_refused(message, build, options):
    refused(message, build(**options), scheduler=DDPMScheduler())


def test_inputs_that_do_not_fit_are_refused():
    refused("alone does not state its noise schedule", unet_1d())
    refused("3 channels", unet_2d(), scheduler=DDPMScheduler(), sample_shape=(4, 8, 8))
    refused("decodes with its own part", stable_diffusion(), vae=autoencoder())
    refused("Got a Linear, but expected", torch.nn.Linear(2, 2), TypeError)


def test_pipelines_with_more_than_a_network_are_refused():
    pipeline = stable_diffusion()
    control = ControlNetModel.from_unet(pipeline.unet, conditioning_embedding_out_channels=(8,))
    parts = {name: part for name, part in pipeline.components.items() if name != "image_encoder"}
    parts = {**parts, "controlnet": control, "requires_safety_checker": False}
    refused("found controlnet, unet", StableDiffusionControlNetPipeline(**parts))


def test_an_architecture_is_one_entry(monkeypatch, tmp_path):
    """A custom class becomes supported by registering it."""

    class Gain(ModelMixin, ConfigMixin):
        @register_to_config
        def __init__(self):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.ones(1))

        def forward(self, x, time):
            return self.gain * x + time[:, None]

    network = Gain()
    refused("Gain is not supported", network, scheduler=DDPMScheduler())
    interface = NetworkInterface(lambda net, x, t, condition: net(x, t), channels=2, size=None)
    monkeypatch.setitem(NETWORKS, "Gain", lambda config: interface)
    teacher = from_diffusers(network, scheduler=DDPMScheduler(), sample_shape=(2, 5))
    x = torch.randn(1, 2, 5)
    torch.testing.assert_close(teacher(x, torch.tensor(0.1, dtype=torch.float64)), x + 99.0)
    with pytest.raises(TypeError, match="A Gain is not a class of diffusers and cannot be saved"):
        save_teacher(teacher, tmp_path / "teacher")
    assert not list(tmp_path.iterdir())


def test_sdxl_with_one_encoder():
    """The first tokenizer and encoder may both be absent."""
    pipeline = sdxl()
    absent = {"text_encoder": None, "tokenizer": None}
    components = {**pipeline.components, **absent, "unet": sdxl_unet(cross_attention_dim=WIDTH)}
    teacher = from_diffusers(StableDiffusionXLPipeline(**components))
    assert teacher.encode_condition(PROMPTS)["encoder_hidden_states"].shape == (2, TOKENS, WIDTH)
    # Refiners are conditioned on an aesthetic score instead of a target size.
    refused("aesthetic score", StableDiffusionXLImg2ImgPipeline(**components, requires_aesthetics_score=True))
