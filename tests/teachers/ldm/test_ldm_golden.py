"""Latent diffusion checkpoints against stored outputs of the classes that they come from."""

import hashlib

import numpy as np
import pytest
import torch
from golden_data import tensor
from ldm_checkpoints import (
    FOLDER,
    array,
    compare,
    data,
    manifest,
    names,
    network_times,
    outputs,
    real_names,
    real_tensors,
)

from gas_ext import NoiseSchedule
from gas_ext.configs import load_config
from gas_ext.safe_pickle import read_torch_archive
from gas_ext.teachers.ldm.checkpoint import read_tensors, sort_checkpoint
from gas_ext.teachers.ldm.stable_diffusion import build_pipeline
from gas_ext.teachers.ldm.teacher import build_latent_teacher

NAMES = names("cin", "lsun")
CLASS_NAMES = names("cin")
UNCONDITIONAL_NAMES = names("lsun")
CONFIGS = {"lsun_beds256": "lsun-bedroom", "cin256-v2": "imagenet", "sd_v1": "coco"}


def predictions(teacher, name, quantity, condition=None):
    """Outputs of the teacher at the network times of the stored outputs."""
    x = array(name, "x")
    for key in outputs(name, quantity):
        t = (network_times(name, key) + 1.0) / teacher.num_timesteps
        yield key, teacher(x, t, condition)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_epsilon(name, load, golden_record):
    labels = array(name, "labels") if name in CLASS_NAMES else None
    found = list(predictions(load(name), name, "eps", labels))
    assert len(found) == 6
    for key, output in found:
        compare(golden_record, name, key, output)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASS_NAMES)
def test_epsilon_without_a_label(name, load, golden_record):
    teacher = load(name)
    assert teacher.num_classes == 1000
    for condition in (None, teacher.unconditional_condition(), torch.tensor([1000, 1000])):
        for key, output in predictions(teacher, name, "eps_uncond", condition):
            compare(golden_record, name, key, output)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASS_NAMES)
def test_epsilon_of_several_context_vectors(name, load, golden_record):
    context = array(name, "context_multi")
    for key in outputs(name, "eps_multi"):
        tau = network_times(name, key)
        output = load(name).unet(array(name, "x"), tau, context, return_dict=False)[0]
        compare(golden_record, name, key, output)


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_class_embedding_is_exact(name, load):
    embedding = load(name).class_embedding
    assert torch.equal(embedding(array(name, "labels"))[:, None], array(name, "class_emb"))
    assert torch.equal(embedding(array(name, "label_uncond"))[:, None], array(name, "class_emb_uncond"))


@pytest.mark.slow
@pytest.mark.parametrize("name", UNCONDITIONAL_NAMES)
def test_epsilon_of_the_plain_weights(name, load, golden_record):
    plain = list(predictions(load(name, use_ema=False), name, "eps_noema"))
    assert len(plain) == 2
    for key, output in plain:
        compare(golden_record, name, key, output)
        assert (output - array(name, key.replace("_noema", ""))).abs().max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_schedule_is_the_checkpoints(name, load):
    teacher, table = load(name), tensor(data(name)["alphas_cumprod_f32"])
    assert teacher.schedule == NoiseSchedule.vp_discrete(table)
    times = torch.arange(1, 1001, dtype=torch.float64) / 1000
    assert torch.allclose(teacher.schedule.alpha(times) ** 2, table, rtol=1e-13, atol=0)
    assert (teacher.num_timesteps, teacher.scale_factor) == (1000, float(data(name)["scale_factor"]))


@pytest.mark.parametrize("name", NAMES)
def test_decoding(name, load, golden_record):
    teacher, z = load(name), array(name, "z")
    compare(golden_record, name, "img", teacher.decode(z))
    plain = teacher.first_stage.decode(z / teacher.scale_factor, force_not_quantize=True).sample
    compare(golden_record, name, "img_noquant", plain)


@pytest.mark.parametrize("name", NAMES)
def test_quantizing(name, load, golden_record):
    codes = array(name, "z_code_indices")
    quantized, _, (_, _, found) = load(name).first_stage.quantize(array(name, "z"))
    assert torch.equal(found.reshape(codes.shape), codes)
    compare(golden_record, name, "z_q", quantized)


@pytest.mark.parametrize("name", NAMES)
def test_encoding(name, load, golden_record):
    teacher = load(name)
    latents = teacher.first_stage.encode(array(name, "img_in")).latents
    compare(golden_record, name, "enc_prequant", latents)
    compare(golden_record, name, "enc_latent", latents * teacher.scale_factor)


@pytest.mark.parametrize("name", NAMES)
def test_no_tensor_is_left_without_memory(name, load):
    assert not any(t.is_meta for t in [*load(name).parameters(), *load(name).buffers()])


@pytest.mark.slow
@pytest.mark.parametrize("name", real_names())
def test_full_size_models_convert_without_a_key_left_over(name):
    tensors = real_tensors(name)
    checkpoint, config = sort_checkpoint(tensors), load_config(CONFIGS[name])
    if checkpoint.model_type == "stable-diffusion":
        pipeline = build_pipeline(checkpoint)
        unet, first_stage, condition = pipeline.unet, pipeline.vae, pipeline.text_encoder
        shape = (unet.config.in_channels, *[unet.config.sample_size] * 2)
    else:
        teacher = build_latent_teacher(checkpoint)
        unet, first_stage, condition = teacher.unet, teacher.first_stage, teacher.class_embedding
        shape = teacher.sample_shape
    assert shape == config.space.shape
    architecture = dict(config.teacher.architecture)
    assert type(unet).__name__ == architecture.pop("network")
    assert {key: unet.config[key] for key in architecture} == architecture
    prefixes = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")
    for prefix, module in zip(prefixes, (unet, first_stage, condition), strict=True):
        count = sum(value.numel() for key, value in tensors.items() if key.startswith(prefix))
        assert count == sum(p.numel() for p in module.parameters()) if module is not None else count == 0


@pytest.mark.parametrize("name", ["cin_small", "lsun_small", "sd_small"])
def test_archives_hold_what_their_manifests_list(name, checkpoint_file):
    found = read_torch_archive(checkpoint_file(name))["state_dict"]
    listed = {key: (shape, dtype, digest) for key, shape, dtype, _, _, digest in manifest(name)["state_dict"]}
    assert {key: described(value.numpy()) for key, value in found.items()} == listed


def described(value: np.ndarray) -> tuple[list[int], str, str]:
    return list(value.shape), str(value.dtype), hashlib.sha256(value.tobytes()).hexdigest()[:16]


def test_callbacks_next_to_the_weights_are_ignored():
    """Callbacks may be keyed by their class or by its name."""
    shapes = {key: shape for key, (shape, _, _) in manifest("tiny_callbacks").items()}
    found = []
    for form in ("class", "plain"):
        path = FOLDER / f"tiny_callbacks_{form}.ckpt"
        found.append(read_tensors(path))
        assert {key: list(value.shape) for key, value in found[-1].items()} == shapes
        assert read_torch_archive(path)["callbacks"]
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())
