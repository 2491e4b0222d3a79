"""Derivatives of the compiled update: as the reference's, of any subset, and only those that are wanted."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from update_inputs import DTYPE_PAIRS, assert_as_good_as_torch, atol_of, gradients, make_inputs, to_float64

from gas_ext.ops import fused_update, fused_update_reference
from gas_ext.ops.reference import FIRST_WEIGHT, fused_update_backward_reference


@pytest.mark.slow
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(("dtype", "output_dtype"), DTYPE_PAIRS)
@pytest.mark.parametrize("shape", [(0, 3), (2, 3), (17,), (3, 5, 7), (2, 4, 31, 33)])
def test_gradients_match_reference(
    device: torch.device, shape: tuple[int, ...], dtype: torch.dtype, output_dtype: torch.dtype, guided: bool
) -> None:
    inputs = make_inputs(shape, guided=guided, dtype=dtype, output_dtype=output_dtype, device=device)
    options = {"guided": guided, "next_input_dtype": output_dtype}
    actual = gradients(fused_update, inputs, **options)
    same_dtype = gradients(fused_update_reference, inputs, **options)
    exact = gradients(
        fused_update_reference, to_float64(*inputs), guided=guided, next_input_dtype=torch.float64
    )
    for i, (value, reference, truth) in enumerate(zip(actual, same_dtype, exact, strict=True)):
        assert value.dtype == reference.dtype
        # Coefficient gradients are sums over all elements: their tolerance grows with the root of the size.
        scale = max(1.0, torch.Size(shape).numel() ** 0.5) if i == len(actual) - 1 else 1.0
        assert_as_good_as_torch(value, reference, truth, scale * 2 * atol_of(dtype) + atol_of(output_dtype))


def test_gradcheck_twice(device: torch.device) -> None:
    for guided in (False, True):
        history, output, coefficients = make_inputs((2, 3), 2, guided, torch.float64, device=device)
        leaves = [t.requires_grad_() for t in (output, coefficients, *history)]

        def update(output: Tensor, row: Tensor, *past: Tensor, guided: bool = guided) -> tuple[Tensor, ...]:
            return tuple(fused_update(past, output, row, guided=guided, next_input_dtype=torch.float64))  # type: ignore[return-value]

        assert torch.autograd.gradcheck(update, leaves)
        assert torch.autograd.gradgradcheck(update, leaves)


def test_only_wanted_gradients_are_computed(device: torch.device) -> None:
    history, output, coefficients = make_inputs((5, 7), terms=3, device=device)
    history[1].requires_grad_()
    fused_update(history, output, coefficients).state.sum().backward()
    assert history[1].grad is not None
    torch.testing.assert_close(
        history[1].grad, torch.full_like(history[1], float(coefficients[FIRST_WEIGHT + 1]))
    )
    assert history[0].grad is None
    assert output.grad is None
    grads = torch.ops.gas_ext.fused_update_backward(
        None, output, None, history, output, None, coefficients, False, [1], False, False
    )
    assert [g.shape for g in grads[0]] == [output.shape]
    assert grads[1].numel() == grads[2].numel() == 0


def test_no_graph_without_gradients(device: torch.device) -> None:
    history, output, coefficients = make_inputs((2, 3), device=device)
    history[0].requires_grad_()
    with torch.no_grad():
        result = fused_update(history, output, coefficients)
    assert result.state.grad_fn is None
    assert fused_update([t.detach() for t in history], output, coefficients).state.grad_fn is None


def test_backward_reference_is_the_derivative(device: torch.device) -> None:
    """The equations of the backward pass against autograd of the forward equations."""
    history, output, coefficients = make_inputs((4, 3), 3, True, torch.float64, device=device)
    leaves = [t.requires_grad_() for t in (*history, output, coefficients)]
    data, state, y = fused_update_reference(
        history, output, coefficients, guided=True, next_input_dtype=torch.float64
    )
    assert y is not None
    grads = [torch.cos(t.detach()) for t in (data, state, y)]
    expected = torch.autograd.grad((data, state, y), leaves, grads)
    grad_history, grad_output, grad_row = fused_update_backward_reference(
        *grads, history, output, state, coefficients, True, [0, 1, 2], True, True
    )
    for actual, truth in zip([*grad_history, grad_output, grad_row], expected, strict=True):
        torch.testing.assert_close(actual, truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("needs", [(0,), (1,), (2,), (3,), (0, 3), (1, 2), (0, 1, 2, 3)])
def test_second_derivatives_of_any_subset(device: torch.device, guided: bool, needs: tuple[int, ...]) -> None:
    """Gradients of gradients where only some of (x_n, an older state, output, coefficients) are learned."""
    history, output, coefficients = make_inputs((2, 3), 2, guided, torch.float64, device=device)

    def second(update: Callable[..., tuple[Tensor, ...]]) -> list[Tensor]:
        leaves = [t.detach().clone() for t in (*history, output, coefficients)]
        wanted = [leaves[i].requires_grad_() for i in needs]
        data, state, _ = update(leaves[:2], leaves[2], leaves[3], guided=guided)
        loss = (state**3).sum() + (data**2).sum()
        first = torch.autograd.grad(loss, wanted, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), wanted))

    for actual, expected in zip(second(fused_update), second(fused_update_reference), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_third_derivatives_are_refused(device: torch.device) -> None:
    history, output, coefficients = make_inputs((2, 3), 1, False, torch.float64, device=device)
    row = coefficients.requires_grad_()
    state = fused_update(history, output, row).state
    (first,) = torch.autograd.grad(state.sum(), row, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable twice"):
        torch.autograd.grad(first.square().sum(), row, create_graph=True)


def test_overwritten_tensors_are_noticed(device: torch.device) -> None:
    history, output, coefficients = make_inputs((2, 3), device=device)
    weight, buffer = torch.ones_like(output, requires_grad=True), torch.ones_like(output)
    loss = (weight * buffer).sum()
    with torch.no_grad():
        fused_update(history, output, coefficients, out=(buffer, torch.empty_like(buffer)))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


class Solve:
    """Leaves of a small solve of five steps and order 3: noise, weights of a network, coefficient rows."""

    def __init__(self, device: torch.device, guided: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)

        def leaf(*shape: int) -> Tensor:
            values = torch.randn(shape, generator=generator, dtype=torch.float64) / 2
            return values.to(device).requires_grad_()

        self.noise, self.weight, self.guided = leaf(2, 3, 4, 5), leaf(3, 3), guided
        self.rows = [leaf(FIRST_WEIGHT + min(n + 1, 3) + min(n, 2)) for n in range(5)]
        self.leaves = [self.noise, self.weight, *self.rows]

    def network(self, x: Tensor) -> Tensor:
        x = torch.cat([x, 2 * x]) if self.guided else x
        return torch.einsum("bchw,cd->bdhw", x.sin(), self.weight)

    def run(self, update: Callable[..., tuple[Tensor, ...]]) -> tuple[list[Tensor], list[Tensor]]:
        """Return all states and all data predictions, newest first."""
        states, data = [self.noise], []
        for row in self.rows:
            history = states[:3] + data[:2]
            new_data, state, _ = update(history, self.network(states[0]), row, guided=self.guided)
            states.insert(0, state)
            data.insert(0, new_data)
        return states, data


@pytest.mark.parametrize("guided", [False, True])
def test_gradients_of_a_whole_solve(device: torch.device, guided: bool) -> None:
    """Into all intermediate results, and of a state in the middle, in several passes over the same graph."""
    solve = Solve(device, guided)
    found = []
    for update in (fused_update, fused_update_reference):
        states, data = solve.run(update)
        loss = sum(t.square().sum() for t in states[:-1] + data)
        passes = [
            torch.autograd.grad(loss, [*solve.leaves, states[2]], retain_graph=True),
            torch.autograd.grad(states[0].sum(), [solve.rows[-1], states[2]], retain_graph=True),
            torch.autograd.grad(loss, solve.leaves),
        ]
        found.append([gradient for gradients in passes for gradient in gradients])
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12 * expected.abs().max().item())


@pytest.mark.slow
@pytest.mark.parametrize("ended", ["no pass", "a pass", "a pass that ended early"])
def test_a_solve_returns_its_memory_without_the_garbage_collector(device: torch.device, ended: str) -> None:
    solve = Solve(device)
    states, data = solve.run(fused_update)
    loss = states[0].square().sum()
    gc.collect()
    gc.disable()
    try:
        if ended != "no pass":
            torch.autograd.grad(loss, solve.leaves if ended == "a pass" else solve.rows[-1:])
        references = [weakref.ref(tensor) for tensor in states[:-1] + data]
        del states, data, loss
        assert [reference() for reference in references] == [None] * len(references)
    finally:
        gc.enable()
