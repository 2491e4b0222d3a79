"""Published EDM networks, loaded from their pickles, against stored outputs and gradients."""

import numpy as np
import pytest
import torch
from golden_data import GOLDEN, arrays, index, note, tensor
from safetensors.torch import load_file

from gas_ext.teachers.edm import EDMTeacher, load_edm_snapshot
from gas_ext.teachers.edm.layers import UNetBlock

SNAPSHOTS = sorted(path.name for path in GOLDEN.glob("edm/*.pkl"))
# The reference computes in float32; ours differs by rounding alone, relative to the largest value.
TOLERANCE = 3e-6
# Its noise label for VP networks takes log(1 + sigma^2) in float32, where 1e-4 of 1 is lost at sigma = 0.01;
# what follows from the label differs accordingly.
NOISE_TOLERANCE = 2e-4
VP_TOLERANCE = 2e-5


def tolerance(name: str) -> float:
    return VP_TOLERANCE if "_vp" in name else TOLERANCE


def loaded(name: str) -> tuple[EDMTeacher, dict[str, np.ndarray]]:
    stem = name.replace(".scrubbed", "").replace("_era2022", "").replace(".pkl", "")
    return load_edm_snapshot(GOLDEN / "edm" / name), arrays(f"edm/{stem}.npz")


def relative(found: torch.Tensor, expected: np.ndarray) -> float:
    """Largest difference, in units of the largest expected value (at least 1)."""
    scale = max(1.0, float(np.abs(expected).max()))
    return (found - tensor(expected, torch.float32)).abs().max().item() / scale


def check(record, name: str, quantity: str, found: torch.Tensor, expected: np.ndarray, limit: float):
    difference = relative(found, expected)
    note(record, f"edm {name.split('.')[0]}", quantity, difference, name)
    assert difference <= limit


def class_labels(data: dict[str, np.ndarray]) -> torch.Tensor | None:
    return tensor(data["class_labels"], torch.float32) if "class_labels" in data else None


def levels(data: dict[str, np.ndarray]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The stored images, and the noise level of each batch."""
    pairs = zip(data["x"], data["sigmas"], strict=True)
    return [(tensor(x, torch.float32), torch.tensor(sigma, dtype=torch.float32)) for x, sigma in pairs]


@pytest.mark.slow
@pytest.mark.parametrize("name", SNAPSHOTS)
def test_outputs_and_what_the_raw_network_is_given(name, golden_record):
    teacher, data = loaded(name)
    seen = []
    teacher.network.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    for i, (x, sigma) in enumerate(levels(data)):
        found = teacher.network(x, sigma, class_labels(data))
        check(golden_record, name, "D", found, data["D"][i], tolerance(name))
        into, noise = seen[-1][:2]
        assert relative(into, data["F_in"][i]) <= TOLERANCE
        assert relative(noise, data["c_noise"][i].repeat(len(x))) <= NOISE_TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", SNAPSHOTS)
def test_the_raw_network(name, golden_record):
    teacher, data = loaded(name)
    labels = class_labels(data)
    if labels is None and teacher.network.label_dim:
        labels = torch.zeros(data["x"].shape[1], teacher.network.label_dim)
    for i in range(len(data["sigmas"])):
        x = tensor(data["F_in"][i], torch.float32)
        noise = tensor(data["c_noise"][i].repeat(len(x)), torch.float32)
        found = teacher.network.model(x, noise, labels, None)
        check(golden_record, name, "F", found, data["F_out"][i], TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", SNAPSHOTS)
def test_per_sample_noise_levels_and_gradients(name, golden_record):
    teacher, data = loaded(name)
    x = tensor(data["vec_x"], torch.float32).requires_grad_()
    sigma = tensor(data["vec_sigma"], torch.float32).requires_grad_()
    found = teacher.network(x, sigma, class_labels(data))
    assert relative(found, data["vec_D"]) <= tolerance(name)
    (found * tensor(data["vec_R"], torch.float32)).sum().backward()
    check(golden_record, name, "gradient to x", x.grad, data["vec_grad_x"], tolerance(name))
    # A sum over all pixels.
    check(
        golden_record, name, "gradient to sigma", sigma.grad, data["vec_grad_sigma"], 10.0 * tolerance(name)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", SNAPSHOTS)
def test_without_and_with_labels(name):
    teacher, data = loaded(name)
    outputs = [teacher.network(*level) for level in levels(data)]
    assert min(relative(output, data["D_no_labels"]) for output in outputs) <= tolerance(name)
    if "augment_labels" in data:
        augment = tensor(data["augment_labels"], torch.float32)
        outputs = [teacher.network(*level, augment_labels=augment) for level in levels(data)]
        assert min(relative(output, data["D_with_augment_labels"]) for output in outputs) <= tolerance(name)


def test_a_block_with_two_heads():
    data = arrays("edm/unetblock_2heads_down.npz")
    block = UNetBlock(16, 32, 16, attention=True, head_channels=16, resample="down")
    block.load_state_dict(load_file(GOLDEN / "edm/unetblock_2heads_down.safetensors"))
    found = block(tensor(data["x"], torch.float32), tensor(data["emb"], torch.float32))
    assert relative(found, data["y"]) <= TOLERANCE


def test_golden_index_names_every_snapshot():
    listed = {name.removeprefix("edm/") for name in index()["files"] if name.startswith("edm/")}
    assert set(SNAPSHOTS) <= listed
