"""A solve on a GPU never waits for it. The GPU is a fake: tensors without memory that claim to be there.

Reading a value of a fake, or a size that depends on values, is an error by itself; copies are counted.
"""

import pytest
import torch
from test_schedules import SCHEDULES
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gas_ext import GASSampler, GeneralizedSolver, NoiseSchedule
from gas_ext.ops import library
from gas_ext.solvers import DEISSolver, DPMSolver, HeunSolver, IPNDMSolver, UniPCSolver

needs_operators = pytest.mark.skipif(
    not library.CUDA_STATUS.loaded, reason=f"no CUDA operators: {library.CUDA_STATUS.reason}"
)


class Copies(TorchDispatchMode):
    """Lists the copies from one device to another, for which the host would wait."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, result)) if isinstance(leaf, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        if func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_) and len(devices) > 1:
            self.found.append(" to ".join(tensor.device.type for tensor in tensors))
        return result


def move(module: nn.Module, device: str) -> None:
    """Move a module to a device that has no values."""
    for name, parameter in module.named_parameters():
        moved = torch.empty_like(parameter, device=device)
        setattr(module, name, nn.Parameter(moved, parameter.requires_grad))
    for name, buffer in module.named_buffers():
        setattr(module, name, torch.empty_like(buffer, device=device))


def network(x, t, condition):
    return torch.tanh(x) * torch.cos(t).to(x.dtype)


def copies_in_the_second_solve(solver, denoiser=network, guidance_scale=None, device="cuda"):
    """The first may bring tables to the device, once for all."""
    move(solver, device)
    sampler = GASSampler(solver, denoiser, "v_prediction", guidance_scale)
    noise = torch.empty(3, 2, 8, 8, device=device)
    conditions = torch.empty(3, 1, 1, 1, device=device), torch.empty(1, 1, 1, 1, device=device)
    sampler(noise, *conditions)
    with Copies() as copies:
        sample = sampler(noise, *conditions)
        if device == "meta" and sample.requires_grad:  # autograd has no thread for a GPU that is not there
            sample.sum().backward()
    assert sample.device.type == device
    assert sample.shape == noise.shape
    return copies.found


def fresh(name):
    """A schedule whose tables on the fake GPU no other test will see."""
    return NoiseSchedule.from_dict(SCHEDULES[name].to_dict())


@pytest.mark.slow
@needs_operators
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("guidance_scale", [None, 3.0])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_learned_solve_does_not_wait(name, guidance_scale, recorded):
    solver = GeneralizedSolver(fresh(name), 4)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.set_grad_enabled(recorded):
        assert copies_in_the_second_solve(solver, guidance_scale=guidance_scale) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_backward_pass_does_not_wait(name):
    assert copies_in_the_second_solve(GeneralizedSolver(fresh(name), 4), device="meta") == []


@needs_operators
@pytest.mark.parametrize("solver_type", [DEISSolver, DPMSolver, HeunSolver, IPNDMSolver, UniPCSolver])
def test_a_classical_solve_does_not_wait(solver_type):
    options = {"order": 3} if solver_type is IPNDMSolver else {}
    solver = solver_type(fresh("vp_discrete"), 5 if solver_type is HeunSolver else 4, t_eps=1e-3, **options)
    solver.weights()  # computed from numbers, before the fake
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert copies_in_the_second_solve(solver) == []


@needs_operators
def test_a_copy_is_found():
    solver = GeneralizedSolver(fresh("vp_linear"), 4)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        found = copies_in_the_second_solve(solver, lambda x, t, condition: x * t.cpu().to(x))
    assert found == 4 * ["cuda to cpu", "cpu to cuda"]


@needs_operators
@pytest.mark.parametrize(
    ("denoiser", "error"),
    [
        (lambda x, t, condition: x * t.item(), DataDependentOutputException),
        (lambda x, t, condition: x if t > 0.5 else -x, DataDependentOutputException),
        (lambda x, t, condition: x - x[x > 0].sum(), DynamicOutputShapeException),
    ],
)
def test_a_read_value_is_found(denoiser, error):
    solver = GeneralizedSolver(fresh("vp_linear"), 4)
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(error), torch.no_grad():
        copies_in_the_second_solve(solver, denoiser)
