"""Latent diffusion teachers: folders, labels and guidance, gradients, and refused files."""

import subprocess
import sys
import warnings
from functools import cache

import pytest
import torch
from ldm_checkpoints import (
    array,
    data,
    loading_options,
    names,
    network_times,
    state_dict,
    write_checkpoint,
)
from safetensors.torch import save_file

from gas_ext import GASSampler, NoiseSchedule
from gas_ext._utils.optional import require
from gas_ext.safe_pickle import DamagedPickleError, UnsafePickleError
from gas_ext.teachers.folder import load_teacher, save_teacher
from gas_ext.teachers.ldm import identify_checkpoint, load_checkpoint
from gas_ext.training.baselines import classical_solver

SMALL = [name for name in names("cin", "lsun") if not name.endswith("full")]
UNET, FIRST_STAGE = "model.diffusion_model.", "first_stage_model."
TEXT = "cond_stage_model.transformer."
FIVE = torch.zeros(5)


@cache
def small_tensors(name):
    return state_dict(name)


def changed(tmp_path, drop=(), name="cin_small", **replaced):
    """A small checkpoint without the tensors whose names start with `drop`, and with others replaced."""
    rest = {key: value for key, value in small_tensors(name).items() if not key.startswith(tuple(drop))}
    return write_checkpoint({**rest, **replaced}, tmp_path / "changed.ckpt")


def load_small(path, name="cin_small", **options):
    return load_checkpoint(path, **{**loading_options(name), **options})


def refused(message, path, name="cin_small", **options):
    """The loader's sentence, which names the file."""
    with pytest.raises(ValueError, match=message) as caught:
        load_small(path, name, **options)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_folder_gives_the_same_teacher(name, load, tmp_path):
    teacher, x, t = load(name), array(name, "x"), torch.tensor([0.4, 0.9])
    labels = torch.tensor([3, 7]) if teacher.num_classes else None
    save_teacher(teacher, tmp_path / "teacher", source={"file": f"{name}.ckpt"})
    again = load_teacher(tmp_path / "teacher")
    assert torch.equal(again(x, t, labels), teacher(x, t, labels))
    assert torch.equal(again.decode(x), teacher.decode(x))
    for key, value in teacher.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    assert again.weights_hash == teacher.weights_hash
    assert again.truncates  # as CompVis' scripts write their images
    assert again.schedule == teacher.schedule
    for attribute in ("name", "sample_shape", "num_classes", "scale_factor", "t_eps", "num_timesteps"):
        assert getattr(again, attribute) == getattr(teacher, attribute)
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype, load, tmp_path, monkeypatch):
    teacher, x, t = load("cin_small"), array("cin_small", "x"), torch.tensor(0.5)
    other = load_teacher(save_teacher(teacher, tmp_path / "teacher")).to(dtype)
    found, images = other(x, t), other.decode(x)
    assert found.dtype == images.dtype == torch.float32
    assert 0 < (found - teacher(x, t)).abs().max() < 0.1
    again = load_teacher(save_teacher(other, tmp_path / "other"))
    assert torch.equal(again(x, t), found)
    assert again.unet.dtype == again.input_dtype == dtype
    # The update before writes the input in half precision.
    solver, results = classical_solver(teacher.schedule, 3, 2, "logsnr", teacher.t_eps).solver, []
    for _ in range(2):
        results.append(GASSampler(solver, other)(x, [3, 7]))
        monkeypatch.setattr(type(other), "input_dtype", None)
    assert results[0].dtype == torch.float32
    assert torch.equal(*results)


def test_labels_of_every_form(load):
    teacher, x, t = load("cin_small"), array("cin_small", "x"), torch.tensor(0.3)
    both = teacher(x, t, teacher.encode_condition([3, 3]))
    assert torch.equal(both, teacher(x, t, torch.tensor(3)))
    assert torch.equal(both, teacher(x, torch.tensor([0.3, 0.3]), torch.tensor([3, 3])))
    assert not torch.equal(both, teacher(x, t))
    with pytest.raises(ValueError, match="from 0 to 999"):
        teacher.encode_condition([1001])
    with pytest.raises(ValueError, match="Got 2 samples and a condition of 3"):
        teacher(x, t, torch.tensor([1, 2, 3]))


def test_guided_sampling_is_guidance_by_hand(load):
    teacher, labels, w = load("cin_small"), torch.tensor([5, 9]), 2.0
    solver = classical_solver(teacher.schedule, 4, 2, "logsnr", teacher.t_eps).solver
    noise = torch.randn(2, *teacher.sample_shape, generator=torch.Generator().manual_seed(0))
    before = teacher.evaluations
    guided = GASSampler(solver, teacher, guidance_scale=w)
    assert guided.prediction_type == "epsilon"
    found = guided(noise, labels)
    assert teacher.evaluations - before == 4

    def by_hand(x, t, condition):
        conditional, unconditional = teacher.predict(x, t, labels), teacher.predict(x, t, None)
        return unconditional + w * (conditional - unconditional)

    expected = GASSampler(solver, by_hand, prediction_type="epsilon")(noise)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert not torch.equal(found, GASSampler(solver, teacher)(noise, labels))


def test_gradients_reach_state_and_time(load):
    teacher, x = load("cin_small"), array("cin_small", "x").clone().requires_grad_()
    t = torch.tensor([0.3, 0.62], dtype=torch.float64, requires_grad=True)
    teacher(x, t, torch.tensor([1, 2])).square().sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())
    h = 1e-4  # a tenth of one of the network's time steps
    with torch.no_grad():
        ahead, behind = (teacher(x, t + step, torch.tensor([1, 2])).square() for step in (h, -h))
    slopes = (ahead - behind).flatten(1).sum(1).double() / (2 * h)
    assert torch.allclose(t.grad, slopes, rtol=0.05, atol=0.01 * slopes.abs().max().item())
    latents = array("cin_small", "z").clone().requires_grad_()
    teacher.decode(latents).sum().backward()  # past the quantization
    assert latents.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("name", "write"),
    [("m.ckpt", write_checkpoint), ("m.pt", torch.save), ("m.safetensors", save_file)],
)
def test_every_format_is_read_and_no_longer_needed(name, write, load, tmp_path):
    path, x, t = tmp_path / name, array("cin_small", "x"), torch.tensor(0.5)
    write(small_tensors("cin_small"), path)
    teacher = load_checkpoint(path, **loading_options("cin_small"), tokenizer=None, use_ema=None)
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(teacher(x, t), load("cin_small")(x, t))
    assert teacher.name == "m"


def test_a_separate_first_stage(load, tmp_path):
    path = changed(tmp_path, drop=[FIRST_STAGE])
    refused(r"changed\.ckpt .* no first stage .*; pass its checkpoint", path)
    bare = {
        key.removeprefix(FIRST_STAGE): value
        for key, value in small_tensors("cin_small").items()
        if key.startswith(FIRST_STAGE)
    }
    bare["loss.discriminator.main.0.weight"] = torch.zeros(3)
    z, expected = array("cin_small", "z"), load("cin_small")
    for tensors in (bare, small_tensors("cin_small")):
        first_stage = write_checkpoint(tensors, tmp_path / "first_stage.ckpt")
        assert torch.equal(load_small(path, first_stage=first_stage).decode(z), expected.decode(z))


def test_numbers_that_the_file_may_lack(load, tmp_path):
    x, t, z = array("cin_small", "x"), torch.tensor(0.5), array("cin_small", "z")
    bare = changed(tmp_path, drop=["alphas_cumprod", "betas", "sqrt", "log", "posterior"])
    refused(r"no noise schedule \(alphas_cumprod\)", bare)
    teacher = load_small(bare, alphas_cumprod=data("cin_small")["alphas_cumprod_f32"])
    assert torch.equal(teacher(x, t), load("cin_small")(x, t))
    table = data("cin_small")["alphas_cumprod_f64_from_config"].tolist()
    assert load_small(bare, alphas_cumprod=table).schedule == NoiseSchedule.vp_discrete(table)
    rounded = changed(tmp_path, alphas_cumprod=array("cin_small", "alphas_cumprod_f32").half())
    refused(r"rounded to torch\.float16; pass alphas_cumprod", rounded)
    scaled = load_small(changed(tmp_path, scale_factor=torch.tensor(0.5)))
    assert torch.equal(scaled.decode(0.5 * z), load("cin_small").decode(z))
    assert load_small(changed(tmp_path), scale_factor=0.25).scale_factor == 0.25


@pytest.mark.slow
def test_averaged_weights(tmp_path):
    tensors = small_tensors("lsun_small")
    ema = [key for key in tensors if key.startswith("model_ema.")]
    without = changed(tmp_path, drop=ema, name="lsun_small")
    x, t = array("lsun_small", "x"), torch.tensor(0.5)
    plain = load_small(without, "lsun_small")
    refused("no averaged weights", without, "lsun_small", use_ema=True)
    whole = changed(tmp_path, name="lsun_small")
    assert torch.equal(load_small(whole, "lsun_small", use_ema=False)(x, t), plain(x, t))
    assert not torch.equal(load_small(whole, "lsun_small")(x, t), plain(x, t))
    missing = "model_ema.diffusion_modelout2weight"
    refused(missing, changed(tmp_path, drop=[missing], name="lsun_small"), "lsun_small")
    stray = changed(tmp_path, name="lsun_small", **{"model_ema.diffusion_modelout3weight": torch.zeros(1)})
    refused(r"unknown tensors: model_ema\.diffusion_modelout3weight", stray, "lsun_small")


def test_heads_are_assumed_with_a_warning_or_given(tmp_path, load):
    path, x, t = changed(tmp_path), array("cin_small", "x"), torch.tensor(0.5)
    heads = loading_options("cin_small").pop("num_heads")
    with pytest.warns(UserWarning, match=r"num_heads = 1 \(--heads\) assumed") as warned:
        assumed = load_checkpoint(path, latent_size=x.shape[-1])
    assert len(warned) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        teacher = load_checkpoint(path, latent_size=x.shape[-1], num_heads=heads)
    assert torch.equal(teacher(x, t), load("cin_small")(x, t))
    assert torch.equal(assumed(x, t), teacher(x, t)) == (heads == 1)
    for name in ("num_head_channels", "text_heads"):
        with pytest.raises(ValueError, match=f"described by num_heads, not by {name}"):
            load_checkpoint(path, latent_size=x.shape[-1], **{name: 4})


def test_heads_that_do_not_fit(checkpoint_file):
    path = checkpoint_file("lsun_small")
    refused("32 channels, not a multiple of num_head_channels = 12", path, "lsun_small", num_head_channels=12)
    refused(r"unconditional, .* num_head_channels", path, "lsun_small", num_heads=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("drop", "replaced", "message"),
    [
        ([UNET + "input_blocks.1.0.out_layers.3.weight"], {}, "lacks input_blocks.1.0.out_layers.3.weight"),
        ([UNET + "out.0.bias"], {}, "'conv_norm_out.bias' is absent, but the UNet2DConditionModel"),
        ([FIRST_STAGE + "post_quant_conv.bias"], {}, "'post_quant_conv.bias' is absent, but the VQModel"),
        ([UNET + "output_blocks.1.1.conv.bias"], {}, "lacks output_blocks.1.1.conv.bias"),
        ([], {"alphas_cumprod": torch.ones(9)}, "decreasing log alpha"),
        ([FIRST_STAGE + "quantize"], {}, "lacks quantize.embedding.weight"),
        (["cond_stage_model."], {}, "conditions of an unknown type"),
        ([], {UNET + "out.2.bias": FIVE}, r"is \(5,\), but .* has \(3,\)"),
        ([], {UNET + "label_emb.weight": FIVE}, "of no known network: label_emb"),
        ([], {FIRST_STAGE + "decoder.extra.weight": FIVE}, "of no known network: decoder.ex"),
        ([], {"control_model.weight": FIVE}, "unknown tensors: control_model.weight"),
        ([], {"cond_stage_model.extra.weight": FIVE}, "class embedding is of another type"),
        ([], {"cond_stage_model.embedding.weight": torch.zeros(9, 5)}, r"shape \(9, 5\), but .* takes 16"),
        ([UNET], {}, "not a checkpoint of latent diffusion or Stable Diffusion"),
    ],
)
def test_checkpoints_that_do_not_convert(drop, replaced, message, tmp_path):
    refused(message, changed(tmp_path, drop, **replaced))


def test_a_first_stage_of_another_model(tmp_path):
    tensors = small_tensors("cin_small")
    first_stage = {
        **{key: value for key, value in tensors.items() if key.startswith(FIRST_STAGE)},
        FIRST_STAGE + "quantize.embedding.weight": torch.zeros(8, 4),
        FIRST_STAGE + "quant_conv.weight": torch.zeros(4, 3, 1, 1),
        FIRST_STAGE + "quant_conv.bias": torch.zeros(4),
        FIRST_STAGE + "post_quant_conv.weight": torch.zeros(3, 4, 1, 1),
    }
    other = write_checkpoint(first_stage, tmp_path / "other.ckpt")
    refused("maps 3 channels to 3 and its first stage has codes of 4", changed(tmp_path), first_stage=other)


def test_one_tensor_under_many_names_is_refused(tmp_path):
    path, tensor = tmp_path / "shared.ckpt", torch.zeros(1000)
    torch.save({"state_dict": {f"model.diffusion_model.{i}": tensor for i in range(100)}}, path)
    with pytest.raises(ValueError, match=r"shared\.ckpt is damaged: its tensors share their numbers"):
        load_checkpoint(path)


def test_damaged_files(tmp_path):
    path, other = changed(tmp_path), tmp_path / "cut.safetensors"
    save_file(small_tensors("cin_small"), other)
    for cut, error in ((path, DamagedPickleError), (other, ValueError)):
        content = cut.read_bytes()
        cut.write_bytes(content[: len(content) // 2])
        with pytest.raises(error, match=rf"{cut.name} is damaged"):
            load_small(cut)


def test_other_files(tmp_path):
    for missing in ("none.ckpt", "none.safetensors"):
        with pytest.raises(FileNotFoundError, match="There is no file"):
            load_checkpoint(tmp_path / missing)
    torch.save({"state_dict": [1, 2]}, tmp_path / "list.ckpt")
    with pytest.raises(ValueError, match="no 'state_dict' of named tensors"):
        load_checkpoint(tmp_path / "list.ckpt")
    torch.save({"state_dict": torch.nn.Flatten()}, tmp_path / "module.ckpt")
    with pytest.raises(UnsafePickleError, match="Flatten"):
        load_checkpoint(tmp_path / "module.ckpt")


@pytest.mark.parametrize(
    ("keys", "model"),
    [
        (["input_blocks.1.1.qkv.weight"], "ldm-unconditional"),
        (["cond_stage_model.embedding.weight", "input_blocks.1.1.norm.weight"], "ldm-class"),
        ([TEXT + "text_model.embeddings.token_embedding.weight"], "stable-diffusion"),
        ([TEXT + "embeddings.token_embedding.weight"], "stable-diffusion"),
        (["cond_stage_model.model.token_embedding.weight"], None),  # Stable Diffusion 2
        ([TEXT + "token_emb.weight"], None),  # latent diffusion on texts
        (["middle_block.1.transformer_blocks.0.norm1.weight"], None),
    ],
)
def test_models_are_identified(keys, model):
    keys = [key if key.startswith("cond") else UNET + key for key in [*keys, "out.2.bias"]]
    if model is None:
        with pytest.raises(ValueError, match="conditions of an unknown type"):
            identify_checkpoint(keys)
    else:
        assert identify_checkpoint(iter(keys)) == model


def test_a_missing_library_is_named():
    with pytest.raises(ImportError, match=r"no_such_library.* pip install 'gas_ext\[diffusers\]'"):
        require("no_such_library", "diffusers")


@pytest.mark.process
def test_identifying_needs_no_diffusers():
    code = "import sys, gas_ext.teachers.ldm; sys.exit(bool({'diffusers', 'transformers'} & {*sys.modules}))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_times_between_the_networks_own(load):
    """Network time is N t - 1 and not rounded: the stored outputs at fractional times need exactly that."""
    teacher = load("cin_small")
    tau = network_times("cin_small", "eps/t_frac")
    assert (tau != tau.round()).all()
    seen = []
    handle = teacher.unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    teacher(array("cin_small", "x"), (tau + 1.0) / 1000.0)
    handle.remove()
    assert torch.allclose(seen[0], tau, rtol=0, atol=1e-10)
