"""Teachers of diffusers on disk: the same bits again, no network, no code, no pickles."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_pipelines import (
    FAMILIES,
    TOKENS,
    WIDTH,
    autoencoder,
    conditional_unet,
    ddim,
    noise_for,
    refused,
    sd3,
    stable_diffusion,
    teacher_of,
    unet_2d,
)

from gas_ext.teachers.diffusers import from_diffusers
from gas_ext.teachers.folder import load_teacher, save_teacher

T = torch.tensor(0.4, dtype=torch.float64)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def assert_same(first, second, condition):
    x = noise_for(first)
    with torch.no_grad():
        outputs = [teacher(x, T, teacher.encode_condition(condition)) for teacher in (first, second)]
        decoded = [teacher.decode(x) for teacher in (first, second)]
    assert torch.equal(*outputs)
    assert torch.equal(*decoded)
    for name in (
        *("schedule", "prediction_type", "sample_shape", "condition_kind", "num_classes", "t_eps"),
        *("guidance_scale", "flow_shift", "options"),
    ):
        assert getattr(first, name) == getattr(second, name)


def change_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_gives_the_same_teacher(family, tmp_path, no_network, capfd):
    teacher = teacher_of(family, t_eps=0.002)
    folder = save_teacher(teacher, tmp_path / "teacher")
    again = load_teacher(folder)
    assert_same(teacher, again, FAMILIES[family][2])
    assert (again.name, again.weights_hash) == (family, teacher.weights_hash)
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert not any(module.training for module in again.modules())
    assert not list(folder.rglob("*.bin")) + list(folder.rglob("*.pt")) + list(folder.rglob("*.py"))
    # The identity does not depend on where a teacher was loaded from.
    save_teacher(again, tmp_path / "copy")
    assert again.weights_hash == teacher.weights_hash
    assert "%|" not in capfd.readouterr().err  # no progress bars outside a terminal


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("family", ["sd3", "signal"])
def test_folders_keep_the_dtype(family, dtype, tmp_path):
    teacher = teacher_of(family, dtype=dtype)
    for parameter in teacher.parameters():
        parameter.mul_(1.0 + 1e-12)  # what float32 would not hold
    again = load_teacher(save_teacher(teacher, tmp_path / "teacher"))
    assert {parameter.dtype for parameter in again.parameters()} == {dtype}
    assert_same(teacher, again, FAMILIES[family][2])


def test_the_dtype_does_not_depend_on_the_name_of_an_argument(tmp_path, monkeypatch):
    """Newer versions of diffusers call it "dtype", and may come to ignore "torch_dtype"."""
    import diffusers

    teacher = teacher_of("stable-diffusion", dtype=torch.bfloat16)
    save_teacher(teacher, tmp_path / "teacher")
    load = diffusers.ModelMixin.from_pretrained.__func__
    loaded = []

    def deaf(cls, folder, torch_dtype=None, **options):
        loaded.append(cls.__name__)
        return load(cls, folder, **options)

    monkeypatch.setattr(diffusers.ModelMixin, "from_pretrained", classmethod(deaf))
    assert_same(teacher, load_teacher(tmp_path / "teacher"), FAMILIES["stable-diffusion"][2])
    assert sorted(loaded) == ["AutoencoderKL", "UNet2DConditionModel"]


@pytest.mark.slow
def test_files_are_loaded_in_float32_by_default(tmp_path):
    """Whatever their dtype, and whatever the version of transformers does by default."""
    stable_diffusion().to(torch.float16).save_pretrained(tmp_path)
    for dtype in (None, torch.float16, torch.float64):
        teacher = from_diffusers(tmp_path, dtype=dtype)
        assert {parameter.dtype for parameter in teacher.parameters()} == {dtype or torch.float32}


def test_t5_keeps_the_layers_that_overflow_in_half_precision(tmp_path):
    sd3().save_pretrained(tmp_path / "pipeline")
    teacher = from_diffusers(tmp_path / "pipeline", dtype=torch.float16)
    for each in (teacher, load_teacher(save_teacher(teacher, tmp_path / "teacher"))):
        t5 = each.parts.pipeline.text_encoder_3
        assert t5.dtype == torch.float16
        assert t5.encoder.block[0].layer[1].DenseReluDense.wo.weight.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("shards", ["10GB", "20KB"])
def test_variants(shards, tmp_path):
    pipeline = stable_diffusion()
    pipeline.save_pretrained(tmp_path)
    expected = from_diffusers(tmp_path)
    with torch.no_grad():
        pipeline.unet.conv_out.bias.add_(1.0)
    # Of the network alone; all else is loaded as it is.
    pipeline.unet.save_pretrained(tmp_path / "unet", variant="fp16", max_shard_size=shards)
    x, condition = noise_for(expected), expected.encode_condition("a")
    difference = from_diffusers(tmp_path, variant="fp16")(x, T, condition) - expected(x, T, condition)
    torch.testing.assert_close(difference, torch.ones_like(difference))
    assert_same(from_diffusers(tmp_path), expected, "a")
    alone = from_diffusers(tmp_path / "unet", scheduler=ddim(), variant="fp16")
    assert torch.equal(alone.network.conv_out.bias, pipeline.unet.conv_out.bias)
    refused("no weights of the variant 'bf16'; leave variant out", tmp_path, variant="bf16")


@pytest.mark.slow
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_missing_weights_are_named(part, tmp_path):
    """Diffusers and transformers fill them with random numbers and a warning."""
    stable_diffusion().save_pretrained(tmp_path)
    (path,) = (tmp_path / part).glob("*.safetensors")
    weights = load_file(path)
    missing = sorted(weights)[3]
    del weights[missing]
    save_file(weights, path, metadata={"format": "pt"})
    refused(rf"{part} lacks weights of its .*, 1 in all \({missing}, \.\.\.\)", tmp_path)


def test_folders_of_older_versions(tmp_path):
    """Stable Diffusion's VAE names attention otherwise, DiT its class; CLIP has a level more."""
    stable_diffusion().save_pretrained(tmp_path / "sd")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def vae_name(key):
        return next((key.replace(new, name) for new, name in old.items() if f".{new}." in key), key)

    vae, text = tmp_path / "sd/vae/diffusion_pytorch_model.safetensors", tmp_path / "sd/text_encoder"
    renamed = {vae_name(key): value for key, value in load_file(vae).items()}
    assert any("query" in key for key in renamed)
    save_file(renamed, vae, metadata={"format": "pt"})
    level = {
        f"text_model.{key.removeprefix('text_model.')}": value
        for key, value in load_file(text / "model.safetensors").items()
    }
    level["text_model.embeddings.position_ids"] = torch.arange(TOKENS)[None]
    save_file(level, text / "model.safetensors", metadata={"format": "pt"})
    assert_same(teacher_of("stable-diffusion"), from_diffusers(tmp_path / "sd"), ["a", "b"])
    teacher_of("dit").parts.pipeline.save_pretrained(tmp_path / "dit")
    old_class = "Transformer2DModel"
    change_json(tmp_path / "dit/model_index.json", transformer=["diffusers", old_class])
    change_json(tmp_path / "dit/transformer/config.json", _class_name=old_class, norm_type="ada_norm_zero")
    assert_same(teacher_of("dit"), from_diffusers(tmp_path / "dit"), [3, 7])


def test_cards_name_modules_and_schedulers_only(tmp_path):
    """A pipeline could bring code, which is looked for elsewhere."""
    folder = save_teacher(teacher_of("signal"), tmp_path / "teacher")
    config = json.loads((folder / "teacher.json").read_text())["config"]
    for name in ("DiffusionPipeline", "logging", "NoSuchModel"):
        config["parts"]["classes"]["network"] = name
        change_json(folder / "teacher.json", config=config)
        with pytest.raises(ValueError, match=f"names a {name}, which is not a module or scheduler"):
            load_teacher(folder)


def test_options_survive(tmp_path):
    flux = teacher_of("flux", distilled_guidance=2.0, guidance_scale=1.5)
    again = load_teacher(save_teacher(flux, tmp_path / "flux"))
    assert again.options == flux.options
    assert again.encode_condition("a")["guidance"].tolist() == [2.0]
    labels = from_diffusers(unet_2d(num_class_embeds=4), scheduler=ddim(), num_classes=3)
    again = load_teacher(save_teacher(labels, tmp_path / "labels"))
    assert again.unconditional_condition() == 3


def test_a_pipeline_without_tokenizer_and_with_its_own_betas(tmp_path):
    """What comes out of a converted checkpoint."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    pipeline = stable_diffusion(trained_betas=betas.tolist())
    pipeline.tokenizer = None
    teacher = from_diffusers(pipeline)
    again = load_teacher(save_teacher(teacher, tmp_path / "teacher"))
    assert_same(teacher, again, {"encoder_hidden_states": torch.ones(2, TOKENS, WIDTH)})
    torch.testing.assert_close(again.schedule.alpha(1.0) ** 2, (1.0 - betas).prod(), rtol=1e-13, atol=0)


@pytest.mark.slow
def test_latents_of_a_network_with_a_vae(tmp_path):
    teacher = from_diffusers(unet_2d(in_channels=4, out_channels=4), scheduler=ddim(), vae=autoencoder())
    assert_same(teacher, load_teacher(save_teacher(teacher, tmp_path / "teacher")), None)


@pytest.mark.slow
@pytest.mark.parametrize("path_type", [str, Path])
def test_a_folder_of_diffusers_is_loaded_without_the_network(path_type, tmp_path, no_network, monkeypatch):
    pipeline = stable_diffusion()
    pipeline.save_pretrained(tmp_path / "small-sd")
    teacher = from_diffusers(path_type(tmp_path / "small-sd"))
    assert teacher.name == "small-sd"
    assert_same(from_diffusers(pipeline), teacher, ["a", "b"])
    monkeypatch.chdir(tmp_path / "small-sd")
    assert from_diffusers(path_type(".")).name == "small-sd"


def test_a_network_alone_is_loaded_with_a_scheduler(tmp_path, no_network):
    network = conditional_unet()
    network.save_pretrained(tmp_path / "unet")
    teacher = from_diffusers(tmp_path / "unet", scheduler=ddim(), dtype=torch.float64)
    assert next(teacher.parameters()).dtype == torch.float64
    refused("alone does not state its noise schedule", tmp_path / "unet")


def test_a_name_is_fetched_from_the_hub(tmp_path, monkeypatch):
    stable_diffusion().save_pretrained(tmp_path / "snapshot")
    fetch = mock.Mock(return_value=tmp_path / "snapshot")
    monkeypatch.setattr("gas_ext.teachers.diffusers.files.fetch_pipeline", fetch)
    assert from_diffusers("somebody/small-sd", revision="main").name == "small-sd"
    fetch.assert_called_once_with("somebody/small-sd", "main", None)


def test_missing_models_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused("pipeline nobody/none-such is not in the cache", "nobody/none-such")
    refused("There is no folder", str(tmp_path / "absent"))
    (tmp_path / "model.safetensors").touch()
    refused("gas-ext import", tmp_path / "model.safetensors")
    refused("holds no diffusers model", tmp_path)


def test_only_safetensors_are_read(tmp_path):
    pipeline = stable_diffusion()
    pipeline.save_pretrained(tmp_path)
    torch.save(pipeline.unet.state_dict(), tmp_path / "unet" / "diffusion_pytorch_model.bin")
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    refused("cannot be loaded as a diffusers model: .*safetensors", tmp_path)


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("own.py", {"_class_name": ["own", "Own"]}),
        ("unet/own.py", {"unet": ["own", "Own"]}),
        ("unet/diffusers.py", {}),  # older versions of diffusers preferred it to the library
    ],
)
def test_code_of_a_folder_is_not_run(file, changes, tmp_path):
    stable_diffusion().save_pretrained(tmp_path)
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w')\nfrom diffusers import UNet2DConditionModel as Own\n"
    (tmp_path / file).write_text(code)
    change_json(tmp_path / "model_index.json", **changes)
    refused("requires running code", tmp_path)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model_index.json", "{", r"model_index\.json is damaged"),
        ("model_index.json", "[]", r"model_index\.json is damaged"),
        ("config.json", '{"_class_name": [1]}', r"holds a \[1\], but expected a pipeline or one of"),
    ],
)
def test_damaged_configurations_are_named(file, content, message, tmp_path):
    (tmp_path / file).write_text(content)
    refused(message, tmp_path)


@pytest.mark.process
def test_importing_the_package_does_not_import_diffusers():
    script = (
        "import sys, gas_ext, gas_ext.teachers, gas_ext.teachers.diffusers\n"
        "sys.exit('diffusers' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_without_diffusers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    refused(r"gas_ext\[diffusers\]", torch.nn.Linear(1, 1), ImportError)
