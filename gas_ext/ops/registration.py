"""Registration of the compiled operators with torch: fake kernels and second derivatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gas_ext.ops.reference import fused_update_backward_reference


def register() -> None:
    """Register fake kernels of all operators, and the derivative of the backward operator."""

    def check_devices(*tensors: Tensor) -> None:
        # A single meta tensor among others brings a call here; the compiled operators refuse such a mixture.
        if any(tensor.device != tensors[0].device for tensor in tensors):
            raise RuntimeError("The tensors are on different devices; move them to one.")

    def fake_update(
        history: list[Tensor],
        output: Tensor,
        coefficients: Tensor,
        guided: bool,
        next_input_dtype: torch.dtype | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        check_devices(*history, output, coefficients)
        data = torch.empty_like(history[0])
        if next_input_dtype is None:
            return data, torch.empty_like(data), data.new_empty(0)
        return data, torch.empty_like(data), torch.empty_like(data, dtype=next_input_dtype)

    def fake_update_out(
        history: list[Tensor],
        output: Tensor,
        coefficients: Tensor,
        guided: bool,
        data: Tensor,
        state: Tensor,
        next_input: Tensor | None,
    ) -> None:
        more = () if next_input is None else (next_input,)
        check_devices(*history, output, coefficients, data, state, *more)

    def fake_backward(
        grad_data: Tensor | None,
        grad_state: Tensor | None,
        grad_next_input: Tensor | None,
        history: list[Tensor],
        output: Tensor,
        state: Tensor | None,
        coefficients: Tensor,
        guided: bool,
        needs_history: list[int],
        needs_output: bool,
        needs_coefficients: bool,
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        grad_history = [torch.empty_like(history[0]) for _ in needs_history]
        grad_output = torch.empty_like(output) if needs_output else output.new_empty(0)
        grad_coefficients = coefficients.new_empty(coefficients.shape[0] if needs_coefficients else 0)
        return grad_history, grad_output, grad_coefficients

    def keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *grads, history, output_, state, coefficients = inputs[:7]
        ctx.save_for_backward(*grads, *history, output_, state, coefficients)
        ctx.terms, ctx.options = len(history), inputs[7:]

    def double_backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "fused_update is differentiable twice; use fused_update_reference for higher derivatives."
            )
        return _double_backward(ctx.saved_tensors, ctx.terms, ctx.options, grads)

    torch.library.register_fake("gas_ext::fused_update", fake_update)
    torch.library.register_fake("gas_ext::fused_update_out", fake_update_out)
    torch.library.register_fake("gas_ext::fused_update_backward", fake_backward)
    torch.library.register_autograd(
        "gas_ext::fused_update_backward", double_backward, setup_context=keep_inputs
    )


def _double_backward(
    saved: tuple[Tensor | None, ...], terms: int, options: tuple[Any, ...], grads: tuple[Any, ...]
) -> tuple[Any, ...]:
    """Differentiate the backward equations once more, through their plain-torch form.

    Second derivatives are rare (gradient checks, penalties on gradients), so they are not fused.
    """
    leaves = [_leaf(t) for t in saved]
    arguments: list[Any] = [*leaves[:3], leaves[3 : 3 + terms], *leaves[3 + terms :], *options]
    with torch.enable_grad():
        grad_history, grad_output, grad_coefficients = fused_update_backward_reference(*arguments)
    results = [*grad_history, grad_output, grad_coefficients]
    pairs = zip(results, [*(grads[0] or []), *grads[1:]], strict=True)
    wanted = [(result, grad) for result, grad in pairs if grad is not None and result.requires_grad]
    tensors = [t for t in leaves if t is not None]
    found = iter(
        torch.autograd.grad([r for r, _ in wanted], tensors, [g for _, g in wanted], allow_unused=True)
    )
    derivatives = [None if t is None else next(found) for t in leaves]
    # register_autograd expects a list for an empty list of indices, and None for a full one.
    no_indices: list[Any] | None = None if options[1] else []
    nothing = (None, no_indices, None, None)
    return (*derivatives[:3], derivatives[3 : 3 + terms], *derivatives[3 + terms :], *nothing)


def _leaf(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().requires_grad_()
