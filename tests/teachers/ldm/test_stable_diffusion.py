"""Stable Diffusion checkpoints against stored outputs of the classes that they come from."""

import json

import pytest
import torch
from golden_data import tensor
from ldm_checkpoints import (
    array,
    compare,
    data,
    loading_options,
    names,
    network_times,
    outputs,
    state_dict,
    write_checkpoint,
)
from safetensors.torch import save_file

from gas_ext import GASSampler
from gas_ext.teachers.folder import load_teacher, save_teacher
from gas_ext.teachers.ldm import (
    load_checkpoint,
    load_stable_diffusion_pipeline,
)
from gas_ext.teachers.ldm.stable_diffusion import load_tokenizer
from gas_ext.training.baselines import classical_solver

transformers = pytest.importorskip("transformers")

NAMES = names("sd")
AVERAGED = [name for name in NAMES if outputs(name, "eps_ema_clip")]
UNET = "model.diffusion_model."


def epsilons(pipeline, name, quantity, context):
    for key in outputs(name, quantity):
        tau = network_times(name, key)
        x = array(name, "x")
        yield key, pipeline.unet(x, tau, context.expand(len(x), -1, -1), return_dict=False)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("context", ["clip", "clip_uncond", "rand"])
def test_epsilon(name, context, load, golden_record):
    found = list(epsilons(load(name), name, f"eps_{context}", array(name, f"context_{context}")))
    assert len(found) == (6 if context == "clip" else 2)
    for key, output in found:
        compare(golden_record, name, key, output)


@pytest.mark.slow
@pytest.mark.parametrize("name", AVERAGED)
def test_epsilon_of_the_averaged_weights(name, load, golden_record):
    averaged = load(name, use_ema=True)
    for key, output in epsilons(averaged, name, "eps_ema_clip", array(name, "context_clip")):
        compare(golden_record, name, key, output)
        assert (output - array(name, key.replace("_ema", ""))).abs().max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_text_encoder(name, load, golden_record):
    encoder = load(name).text_encoder
    for suffix in ("", "_uncond"):
        found = encoder(array(name, f"token_ids{suffix}"))[0]
        compare(golden_record, name, f"context_clip{suffix}", found)


@pytest.mark.parametrize("name", NAMES)
def test_decoding(name, load, golden_record):
    vae = load(name).vae
    assert vae.config.scaling_factor == float(data(name)["scale_factor"])
    compare(golden_record, name, "img", vae.decode(array(name, "z") / vae.config.scaling_factor).sample)


@pytest.mark.parametrize("name", NAMES)
def test_encoding(name, load, golden_record):
    vae = load(name).vae
    latents = vae.encode(array(name, "img_in")).latent_dist
    compare(golden_record, name, "enc_moments", latents.parameters)
    compare(golden_record, name, "enc_mean", latents.mean)
    compare(golden_record, name, "enc_logvar_clamped", latents.logvar)
    compare(golden_record, name, "enc_std", latents.std)
    compare(golden_record, name, "enc_latent_mode", latents.mode() * vae.config.scaling_factor)


@pytest.mark.parametrize("name", NAMES)
def test_schedule_is_the_checkpoints(name, load, tmp_path):
    scheduler, table = load(name).scheduler, array(name, "alphas_cumprod_f32")
    assert torch.equal(scheduler.alphas_cumprod, table)
    scheduler.save_pretrained(tmp_path)
    again = type(scheduler).from_pretrained(tmp_path)  # which computes its table anew
    betas = torch.tensor(again.config.trained_betas, dtype=torch.float64)
    assert torch.allclose(torch.cumprod(1.0 - betas, 0), tensor(table.numpy()), rtol=1e-12, atol=0)
    assert (again.config.prediction_type, again.config.clip_sample) == ("epsilon", False)


@pytest.mark.parametrize("name", NAMES)
def test_no_tensor_is_left_without_memory(name, load):
    pipeline = load(name)
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        assert not any(t.is_meta for t in [*module.parameters(), *module.buffers()])
        assert not any(parameter.requires_grad for parameter in module.parameters())


def test_a_single_safetensors_file(load, tmp_path):
    save_file(state_dict("sd_small"), tmp_path / "model.safetensors")
    path, options = tmp_path / "model.safetensors", loading_options("sd_small")
    pipeline, expected = load_stable_diffusion_pipeline(path, **options), load("sd_small")
    for part in ("unet", "vae", "text_encoder"):
        found = getattr(pipeline, part).state_dict()
        assert all(torch.equal(found[k], v) for k, v in getattr(expected, part).state_dict().items())


def test_refused(checkpoint_file, tmp_path):
    path, options = checkpoint_file("sd_small"), loading_options("sd_small")
    with pytest.raises(ValueError, match="another latent diffusion model; use load_checkpoint"):
        load_stable_diffusion_pipeline(checkpoint_file("cin_small"))
    with pytest.raises(ValueError, match=r"no averaged weights \(model_ema"):
        load_stable_diffusion_pipeline(path, use_ema=True, **options)  # it has only their bookkeeping
    with pytest.raises(ValueError, match="32 channels, not a multiple of text_heads = 12"):
        load_stable_diffusion_pipeline(path, latent_size=8)
    tensors = state_dict("sd_small")
    more = "cond_stage_model.transformer.text_model.embeddings.more.weight"
    without = {key: value for key, value in tensors.items() if not key.startswith("first_stage")}
    for changed, message in (
        (
            {**tensors, UNET + "input_blocks.0.0.weight": torch.zeros(32, 9, 3, 3)},
            "as those for inpainting do",
        ),
        ({**tensors, more: torch.zeros(1)}, r"more\.weight' is .*CLIPTextModel as described has no such"),
        (without, r"no autoencoder \(first_stage_model"),
    ):
        with pytest.raises(ValueError, match=message):
            load_stable_diffusion_pipeline(write_checkpoint(changed, tmp_path / "changed.ckpt"), **options)


def test_a_separate_autoencoder(load, tmp_path):
    tensors = state_dict("sd_small")
    other = {
        key.removeprefix("first_stage_model."): value
        for key, value in tensors.items()
        if key.startswith("first_stage_model.")
    }
    other["decoder.conv_out.bias"] = other["decoder.conv_out.bias"] + 1.0
    path = write_checkpoint(tensors, tmp_path / "model.ckpt")
    first_stage = write_checkpoint(other, tmp_path / "vae.ckpt")
    pipeline = load_stable_diffusion_pipeline(path, first_stage=first_stage, **loading_options("sd_small"))
    z = array("sd_small", "z")
    expected = load("sd_small").vae.decode(z).sample + 1.0
    assert torch.allclose(pipeline.vae.decode(z).sample, expected, atol=1e-5)


def write_tokenizer(folder):
    """The two files of a CLIP tokenizer with letters only."""
    folder.mkdir()
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


def test_a_tokenizer_from_a_folder(tmp_path):
    tokenizer = load_tokenizer(write_tokenizer(tmp_path / "tokenizer"))
    assert tokenizer("ab")["input_ids"] == [52, 0, 27, 53]
    assert len(tokenizer("a", padding="max_length")["input_ids"]) == 77
    assert load_tokenizer(None) is None
    assert load_tokenizer(tokenizer) is tokenizer
    with pytest.raises(ValueError, match="nowhere holds no tokenizer; give a folder"):
        load_tokenizer(tmp_path / "nowhere")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_as_a_teacher(name, checkpoint_file, golden_record):
    options = loading_options(name)
    teacher = load_checkpoint(checkpoint_file(name), **options)
    assert (teacher.name, teacher.family, teacher.guidance_scale) == (name, "diffusers", 7.5)
    assert teacher.truncates
    assert teacher.sample_shape == array(name, "x").shape[1:]
    table = tensor(data(name)["alphas_cumprod_f32"])
    times = torch.arange(1, 1001, dtype=torch.float64) / 1000
    assert torch.allclose(teacher.schedule.alpha(times) ** 2, table, rtol=1e-12, atol=0)
    condition = teacher.encode_condition({"encoder_hidden_states": array(name, "context_clip")})
    for key in outputs(name, "eps_clip"):
        t = (network_times(name, key) + 1.0) / 1000.0
        compare(golden_record, name, key, teacher(array(name, "x"), t, condition))
    compare(golden_record, name, "img", teacher.decode(array(name, "z")))
    with pytest.raises(ValueError, match="no tokenizer, so it cannot encode prompts"):
        teacher.encode_condition(["a cat"])


@pytest.mark.slow
def test_prompts_guidance_and_folders(checkpoint_file, tmp_path):
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    options = {**loading_options("sd_small"), "tokenizer": tokenizer}
    teacher = load_checkpoint(checkpoint_file("sd_small"), name="small", guidance_scale=2.0, **options)
    save_teacher(teacher, tmp_path / "teacher")
    again = load_teacher(tmp_path / "teacher")
    assert (again.name, again.guidance_scale, again.weights_hash) == ("small", 2.0, teacher.weights_hash)
    assert again.schedule == teacher.schedule
    solver = classical_solver(teacher.schedule, 3, 2, "logsnr", teacher.t_eps).solver
    noise = torch.randn(2, *teacher.sample_shape, generator=torch.Generator().manual_seed(0))
    first, second = (GASSampler(solver, each, guidance_scale=2.0) for each in (teacher, again))
    samples = [sampler(noise, ["abc", "xyz"]) for sampler in (first, second)]
    assert torch.equal(*samples)
    assert torch.equal(again.decode(samples[0]), teacher.decode(samples[0]))
    assert not torch.equal(samples[0], first(noise, ["b", "c"]))
    noise.requires_grad_()
    first(noise, ["abc", "xyz"]).sum().backward()
    assert noise.grad.abs().sum() > 0


def test_prompts_are_not_for_classes(checkpoint_file, tmp_path):
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="takes no prompts; leave the tokenizer out"):
        load_checkpoint(checkpoint_file("cin_small"), tokenizer=tokenizer)
