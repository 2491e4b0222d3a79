"""The fused update alone: one step in the middle of a four-step solve, seven history tensors."""

import pytest
import torch
from conftest import SIZES, size_name

from gas_ext.ops import fused_update, fused_update_reference

HISTORY = 7
PEERS = {"fused": "reference", "reference": "fused", "compiled": "fused"}


def implementation(name):
    if name == "compiled":
        return torch.compile(fused_update_reference, dynamic=False)
    return fused_update if name == "fused" else fused_update_reference


def tensors(size, requires_grad):
    generator = torch.Generator().manual_seed(0)
    history = [torch.randn(size, generator=generator, requires_grad=requires_grad) for _ in range(HISTORY)]
    output = torch.randn(size, generator=generator, requires_grad=requires_grad)
    coefficients = torch.rand(
        5 + HISTORY, generator=generator, dtype=torch.float64, requires_grad=requires_grad
    )
    return history, output, coefficients


@pytest.mark.parametrize("size", SIZES, ids=size_name)
@pytest.mark.parametrize("name", PEERS)
def test_forward(against, name, size):
    history, output, coefficients = tensors(size, requires_grad=False)

    def caller(update):
        def call():
            with torch.no_grad():
                update(history, output, coefficients)

        return call

    peer = PEERS[name]
    against(caller(implementation(name)), caller(implementation(peer)), f"{peer} forward")


@pytest.mark.parametrize("size", SIZES, ids=size_name)
@pytest.mark.parametrize("name", PEERS)
def test_backward(against, name, size):
    """Backward alone, to every tensor and every coefficient."""
    history, output, coefficients = tensors(size, requires_grad=True)
    seed_data, seed_state = torch.randn_like(output), torch.randn_like(output)

    def caller(update):
        result = update(history, output, coefficients)
        inputs = (*history, output, coefficients)

        def call():
            torch.autograd.grad(
                (result.data, result.state), inputs, grad_outputs=(seed_data, seed_state), retain_graph=True
            )

        return call

    peer = PEERS[name]
    against(caller(implementation(name)), caller(implementation(peer)), f"{peer} backward")
