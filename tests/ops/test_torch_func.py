"""Transforms of torch.func, and forward mode, over the update and over whole solves."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from gas_ext import GASSampler, GeneralizedSolver, NoiseSchedule
from gas_ext.ops import fused_update, fused_update_reference

GENERATOR = torch.Generator().manual_seed(0)
HISTORY = [torch.randn(2, 4, generator=GENERATOR, dtype=torch.float64) for _ in range(3)]
OUTPUT = torch.randn(4, 4, generator=GENERATOR, dtype=torch.float64)
ROW = torch.randn(8, generator=GENERATOR, dtype=torch.float64)


def state(update, *history, output=OUTPUT, row=ROW):
    results = update(list(history or HISTORY), output, row, guided=True, next_input_dtype=torch.float64)
    return results.state + results.next_input * results.data


def forward_mode(f, primal, tangent):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(primal, tangent))).tangent


TRANSFORMS = {
    "grad": lambda u: grad(lambda output: state(u, output=output).sum())(OUTPUT),
    "vjp": lambda u: vjp(lambda *history: state(u, *history), *HISTORY)[1](OUTPUT[:2]),
    "jvp": lambda u: jvp(lambda output: state(u, output=output), (OUTPUT,), (OUTPUT.cos(),)),
    "forward mode": lambda u: forward_mode(lambda row: state(u, row=row), ROW, ROW.cos()),
    "jacrev": lambda u: jacrev(lambda row: state(u, row=row))(ROW),
    "jacfwd": lambda u: jacfwd(lambda row: state(u, row=row))(ROW),
    "hessian": lambda u: hessian(lambda row: state(u, row=row).sum())(ROW),
    "third derivative": lambda u: jacfwd(hessian(lambda row: state(u, row=row).sum()))(ROW),
    "vmap": lambda u: vmap(lambda row: state(u, row=row))(torch.stack([ROW, ROW.cos()])),
    "vmap of states": lambda u: vmap(lambda x: state(u, x, *HISTORY[1:]))(torch.stack(HISTORY)),
    "vmap of grad": lambda u: vmap(grad(lambda row: state(u, row=row).sum()))(torch.stack([ROW, ROW.cos()])),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_of_the_update_are_those_of_the_reference(name):
    found, expected = TRANSFORMS[name](fused_update), TRANSFORMS[name](fused_update_reference)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_no_update_into_given_memory_within_a_transform():
    with pytest.raises(ValueError, match=r"^out cannot be used where a derivative is taken; .*\.$"):
        vmap(lambda x: fused_update([x], x, ROW[:6], out=(x.clone(), x.clone())).state)(HISTORY[0])


@pytest.mark.parametrize("size", [4, 65_536])
def test_gradients_of_a_solve_are_those_of_autograd(size):
    solver = GeneralizedSolver(NoiseSchedule.flow(), 3)
    sampler = GASSampler(solver, lambda x, t, condition: torch.tanh(x) * t, "sample")
    noise = torch.randn(1, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    parameters = dict(solver.named_parameters(prefix="solver"))
    expected = torch.autograd.grad(sampler(noise).square().mean(), list(parameters.values()))
    found = grad(lambda values: functional_call(sampler, values, (noise,)).square().mean())(parameters)
    torch.testing.assert_close(list(found.values()), list(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("transform", [grad, jacrev, jacfwd])
def test_derivatives_by_the_noise_of_a_new_sampler(transform):
    """The first solve, within the transform, is the one that would cache coefficients."""
    solver = GeneralizedSolver(NoiseSchedule.vp_linear(), 3).double().requires_grad_(False)
    noise = torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sampler = GASSampler(solver, lambda x, t, condition: torch.tanh(x))
    found = transform(lambda x: sampler(x).square().sum())(noise)
    x = noise.clone().requires_grad_()
    sampler(x).square().sum().backward()
    torch.testing.assert_close(found, x.grad)


def test_solves_of_several_solvers_and_noises_at_once():
    solver = GeneralizedSolver(NoiseSchedule.flow(), 3)
    sampler = GASSampler(solver, lambda x, t, condition: torch.tanh(x) * t, "sample")
    noise = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(1))
    several = {
        name: torch.stack([value.detach() + 0.1 * k for k in range(3)])
        for name, value in solver.named_parameters(prefix="solver")
    }

    def solve(values, noise):
        return functional_call(sampler, values, (noise,))

    with torch.no_grad():
        found = vmap(solve)(several, noise)
        one_by_one = [solve({name: v[k] for name, v in several.items()}, noise[k]) for k in range(3)]
    torch.testing.assert_close(found, torch.stack(one_by_one))
