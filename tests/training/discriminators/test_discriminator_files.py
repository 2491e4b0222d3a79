import json
import stat

import pytest
import torch
from golden_data import GOLDEN, arrays
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from toy_run import randn, same

from gas_ext._utils.building import described_by
from gas_ext._utils.sealed_files import write_sealed
from gas_ext.training.discriminators import (
    Discriminator,
    R3GANConfig,
    build_discriminator,
    load_discriminator,
    save_discriminator,
)

CONFIG = R3GANConfig((4, 8), (1, 2), (1, 1), num_classes=3, embedding_dim=2, bfloat16_stages=(0,))


@pytest.fixture
def saved(tmp_path):
    discriminator = build_discriminator("r3gan", (2, 8, 8), seed=0, config=CONFIG)
    path = tmp_path / "discriminator.safetensors"
    save_discriminator(discriminator, path)
    return discriminator, path


@pytest.mark.parametrize(
    ("name", "shape", "settings"),
    [
        ("r3gan", (2, 8, 12), {"config": CONFIG}),
        ("convolution", (1, 40), {"width": 4}),
        ("convolution", (2, 5, 8, 8), {"width": 2, "max_width": 4, "num_classes": 3}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip(tmp_path, name, shape, settings, dtype):
    discriminator = build_discriminator(name, shape, seed=0, **settings).to(dtype)
    path = tmp_path / "new" / "discriminator.safetensors"
    save_discriminator(discriminator, path)
    again = load_discriminator(path)
    assert type(again) is type(discriminator)
    assert again.sample_shape == shape
    assert again.state_dict().keys() == discriminator.state_dict().keys()
    assert same(again, discriminator)
    assert all(parameter.requires_grad for parameter in again.parameters())
    x = randn(2, *shape, seed=1, dtype=dtype)
    labels = torch.tensor([1, 3]) if discriminator.num_classes else None
    assert torch.equal(again(x, labels), discriminator(x, labels))


def test_a_stored_file_gives_the_published_logits():
    """An early converted snapshot: the format stays readable, and the network the same."""
    discriminator = load_discriminator(GOLDEN / "r3gan" / "r3gan_cond32.safetensors")
    for name, key, conditional in (
        ("r3gan_cond32", "logits", True),
        ("r3gan_cond32_gas", "logits_gas_constant_embedding", False),
    ):
        data = arrays(f"r3gan/{name}.npz")
        images, expected = torch.from_numpy(data["img"]), torch.from_numpy(data[key])
        labels = torch.from_numpy(data["c"]).argmax(1) if conditional else None
        with torch.no_grad():
            assert (discriminator(images, labels) - expected).abs().max() <= 3e-2  # bfloat16


def test_saving_again_gives_the_same_file_and_nothing_else(saved, tmp_path):
    _, path = saved
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert path.stat().st_mode & stat.S_IRUSR
    save_discriminator(load_discriminator(path), tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no discriminator file .*none\.safetensors"):
        load_discriminator(tmp_path / "none.safetensors")


def test_unregistered_class_cannot_be_saved(tmp_path):
    class Nameless(Discriminator):
        def features(self, samples):
            return samples.flatten(1)

    with pytest.raises(ValueError, match="Nameless has no name; decorate it with register_discriminator"):
        save_discriminator(Nameless((2,)), tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def read(path):
    """Return the record and the tensors of a file."""
    with safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()["gas_ext_discriminator"])
        return record, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def rewrite(path, change=None, tensors=None):
    """Write the file again with its record or tensors changed, but the old checksum."""
    record, old = read(path)
    record.update(change or {})
    save_file({**old, **(tensors or {})}, path, {"gas_ext_discriminator": json.dumps(record)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 9}, "has discriminator format 9, but this gas_ext reads format 1"),
        ({"settings": 3}, "'settings' is 3, but must be a dict"),
        ({"sample_shape": [2, 16, 16]}, "does not match its SHA-256"),
        ({"sha256": "0" * 64}, "does not match its SHA-256"),
    ],
)
def test_changed_record_is_found(saved, change, message):
    _, path = saved
    rewrite(path, change)
    with pytest.raises(ValueError, match=message):
        load_discriminator(path)


def test_changed_weights_are_found(saved):
    discriminator, path = saved
    rewrite(path, tensors={"extraction.weight": discriminator.extraction.weight.detach() + 1e-6})
    with pytest.raises(ValueError, match="does not match its SHA-256"):
        load_discriminator(path)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\x08\0\0\0\0\0\0\0{}      "])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "odd.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"odd\.safetensors is (not )?a safetensors file"):
        load_discriminator(path)


def test_truncated_file_is_refused(saved):
    _, path = saved
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match="not a safetensors file, or is damaged"):
        load_discriminator(path)


def test_file_of_an_unknown_class_names_the_remedy(tmp_path, monkeypatch):
    class Elsewhere(Discriminator):
        name = "elsewhere"

        def __init__(self, sample_shape):
            super().__init__(sample_shape)
            self.scale = nn.Parameter(torch.ones(1))

        def features(self, samples):
            return self.scale * samples.flatten(1)

    save_discriminator(Elsewhere((2,)), tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"cannot be rebuilt: There is no discriminator 'elsewhere'"):
        load_discriminator(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"width": 8000, "max_width": 8000},
            r"its tensor 'head\.weight' is .*, but the \w+ as described has",
        ),
        ({"width": 10**400, "max_width": 10**400}, "cannot be rebuilt"),
        ({"width": {}}, "cannot be rebuilt"),
    ],
)
def test_sizes_are_compared_with_the_file_before_anything_is_built(tmp_path, settings, message):
    path = tmp_path / "discriminator.safetensors"
    save_discriminator(build_discriminator("convolution", (1, 8), seed=0, width=2), path)
    record, tensors = read(path)
    record["settings"].update(settings)
    write_sealed(path, "gas_ext_discriminator", record, tensors)
    with pytest.raises(ValueError, match=message):
        load_discriminator(path)


def test_endless_networks_are_not_built():
    with pytest.raises(ValueError, match="more than its 1 tensors"), described_by(["weight"]):  # noqa: PT012
        while True:
            torch.nn.Linear(1, 1)
