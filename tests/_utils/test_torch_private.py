"""Where a new torch lacks one of these, this file says which."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from gas_ext._utils.torch_private import below_autograd, is_intercepted, is_transformed, storage_id


def test_transforms_are_seen():
    seen = []

    def look(x):
        seen.append(is_transformed())
        return x.sum()

    x = torch.ones(2)
    torch.func.grad(look)(x)
    torch.func.vmap(look)(x[None])
    with forward_ad.dual_level():
        look(x)
    look(x)
    assert seen == [True, True, True, False]


def test_modes_are_seen():
    assert not is_intercepted()
    with FakeTensorMode():
        assert is_intercepted()


def test_nothing_is_recorded_below_autograd():
    x = torch.ones(2, requires_grad=True)
    with below_autograd():
        assert not (2 * x).requires_grad
    assert (2 * x).requires_grad


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_storages_are_told_apart(device):
    x = torch.ones(4, device=device)
    assert storage_id(x.untyped_storage()) == storage_id(x[2:].untyped_storage())
    assert storage_id(x.untyped_storage()) != storage_id(torch.ones(4, device=device).untyped_storage())
