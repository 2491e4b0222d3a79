import pytest
import torch
from torch import nn

from gas_ext._utils.modes import deterministic, evaluating, frozen


def test_evaluating_restores_every_mode():
    network = nn.Sequential(nn.Dropout(), nn.Linear(2, 1).eval())
    modes = []

    def fail():
        with evaluating(network, torch.device("cpu"), torch.bfloat16):
            modes.extend(module.training for module in network.modules())
            assert network(torch.zeros(1, 2)).dtype == torch.bfloat16
            assert not torch.is_grad_enabled()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert modes == [False] * 3
    assert [module.training for module in network.modules()] == [True, True, False]
    assert torch.is_grad_enabled()


def test_deterministic_restores_cudnn_and_the_threads(monkeypatch):
    cudnn, threads = torch.backends.cudnn, torch.get_num_threads()
    monkeypatch.setattr(cudnn, "benchmark", True)
    with deterministic(threads + 1):
        assert (cudnn.benchmark, cudnn.deterministic, torch.get_num_threads()) == (False, True, threads + 1)
    assert (cudnn.benchmark, cudnn.deterministic, torch.get_num_threads()) == (True, False, threads)


def test_frozen_restores_what_was_and_only_that():
    layer = nn.Linear(2, 1)
    layer.bias.requires_grad_(False)
    seen = []

    def fail():
        with frozen(layer):
            seen.append(layer.weight.requires_grad)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [False]
    assert layer.weight.requires_grad
    assert not layer.bias.requires_grad
