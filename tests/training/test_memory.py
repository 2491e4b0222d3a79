"""The memory count, against what autograd really saves and against the paper."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gas_ext.configs import config_names, load_config
from gas_ext.teachers.demo import load_demo_teacher
from gas_ext.training.memory import activation_bytes, meta_network, training_bytes


def evaluate(network, device):
    x = torch.zeros(3, 1, 32, 32, device=device, requires_grad=True)
    sigma = torch.ones(3, device=device, dtype=torch.float64, requires_grad=True)
    return network(x, sigma, torch.zeros(3, device=device, dtype=torch.int64))


def test_meta_tensors_are_saved_like_real_ones():
    real = load_demo_teacher().network
    meta = meta_network(load_config("demo"))
    counted = activation_bytes(lambda: evaluate(meta, "meta"), meta)
    assert counted == activation_bytes(lambda: evaluate(real, "cpu"), real)
    assert counted > 0


def test_attention_saves_inputs_and_output_alone():
    shape = (2, 4, 16, 8)
    q, k, v = (torch.empty(shape, device="meta", requires_grad=True) for _ in range(3))
    module = nn.Identity()
    size = 4 * q.numel()
    assert activation_bytes(lambda: F.scaled_dot_product_attention(q, k, v), module) == 4 * size
    assert activation_bytes(lambda: F.scaled_dot_product_attention(q, key=k, value=v), module) == 4 * size


@pytest.mark.slow
def test_activations_grow_with_steps_and_weights_do_not():
    config = load_config("cifar10")
    four, eight = training_bytes(config, 4), training_bytes(config, 8)
    assert eight["activations"] == 2 * four["activations"]
    assert eight["weights"] == four["weights"] == 4 * 55_733_891
    assert four["total"] == four["weights"] + four["activations"] + four["history"]
    assert four["history"] == 4 * 9 * 24 * 3 * 32 * 32


@pytest.mark.slow
@pytest.mark.parametrize("name", config_names())
def test_every_config_can_be_counted(name):
    pytest.importorskip("diffusers")
    config = load_config(name)
    counted = training_bytes(config, config.student.steps[0])
    if config.teacher.kind == "edm":
        assert counted["weights"] / 1e6 == pytest.approx(config.teacher.megabytes, abs=1)
    elif config.teacher.megabytes is not None:  # of all parts; the denoiser is the largest
        assert 0.4 < counted["weights"] / 1e6 / config.teacher.megabytes < 1


@pytest.mark.slow
def test_imagenet_needs_what_the_paper_reports():
    """Up to 66 GB at 7 evaluations (paper, appendix); there attention saved its matrix of weights."""
    pytest.importorskip("diffusers")
    assert 50e9 < training_bytes(load_config("imagenet"), 7)["total"] < 70e9


def test_a_network_that_a_config_does_not_describe():
    config = load_config("cifar10")
    teacher = config.teacher.model_copy(update={"architecture": None})
    with pytest.raises(ValueError, match=r"does not describe its network; set teacher\.architecture"):
        training_bytes(config.model_copy(update={"teacher": teacher}), 4)
