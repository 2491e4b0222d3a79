"""The fused update in plain torch: the reference for every kernel, and the fallback without kernels.

Both functions follow the equations of `docs/kernels.md` with ordinary tensor operations, so autograd
differentiates them to any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Indices of the scalars that precede the history weights in a coefficient row.
SAMPLE_SCALE = 0  # p: D_n = p x_n + q m
OUTPUT_SCALE = 1  # q
GUIDANCE = 2  # w: m = m_u + w (m_c - m_u)
NEXT_SCALE = 3  # s: next network input = s x_{n+1}
DATA_WEIGHT = 4  # c_nn: weight of the fresh D_n
FIRST_WEIGHT = 5  # weights of the history tensors follow


class UpdateResult(NamedTuple):
    """The results of one solver step: D_n, x_{n+1} and, if requested, the next network input."""

    data: Tensor
    state: Tensor
    next_input: Tensor | None


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Precision in which an update of `dtype` tensors is computed: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def split_guided(output: Tensor, guided: bool) -> tuple[Tensor | None, Tensor]:
    """Split a doubled batch into its (unconditional, conditional) halves; (None, output) if not guided."""
    if not guided:
        return None, output
    batch = output.shape[0] // 2
    return output[:batch], output[batch:]


def fused_update_reference(
    history: Sequence[Tensor],
    output: Tensor,
    coefficients: Tensor,
    *,
    guided: bool = False,
    next_input_dtype: torch.dtype | None = None,
) -> UpdateResult:
    """Compute one solver step with ordinary torch operations; see `gas_ext.ops.fused_update`."""
    x = history[0]
    work = accumulation_dtype(x.dtype)
    c = coefficients.to(work)
    unconditional, conditional = split_guided(output, guided)
    m = conditional.to(work)
    if unconditional is not None:
        m_u = unconditional.to(work)
        m = m_u + c[GUIDANCE] * (m - m_u)
    data = c[SAMPLE_SCALE] * x.to(work) + c[OUTPUT_SCALE] * m
    state = c[DATA_WEIGHT] * data
    for k, tensor in enumerate(history):
        state = state + c[FIRST_WEIGHT + k] * tensor.to(work)
    next_input = None
    if next_input_dtype is not None:
        next_input = (c[NEXT_SCALE] * state).to(next_input_dtype)
    return UpdateResult(data.to(x.dtype), state.to(x.dtype), next_input)


def fused_update_backward_reference(
    grad_data: Tensor | None,
    grad_state: Tensor | None,
    grad_next_input: Tensor | None,
    history: Sequence[Tensor],
    output: Tensor,
    state: Tensor | None,
    coefficients: Tensor,
    guided: bool,
    needs_history: Sequence[int],
    needs_output: bool,
    needs_coefficients: bool,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Compute the gradients of the update with ordinary torch operations (equations: docs/kernels.md).

    With G = dL/dx_{n+1} + s dL/dy and H = dL/dD_n + c G. The arguments are those of
    ``torch.ops.gas_ext.fused_update_backward``; `state` is recomputed, so that second derivatives see it.
    """
    x = history[0]
    work = accumulation_dtype(x.dtype)
    c = coefficients.to(work)
    past = [tensor.to(work) for tensor in history]
    unconditional, conditional = split_guided(output.to(work), guided)
    difference = conditional if unconditional is None else conditional - unconditional
    m = conditional if unconditional is None else unconditional + c[GUIDANCE] * difference
    data = c[SAMPLE_SCALE] * past[0] + c[OUTPUT_SCALE] * m
    weights = c[FIRST_WEIGHT:]

    zero = torch.zeros_like(past[0])
    g_next = zero if grad_next_input is None else grad_next_input.to(work)
    big_g = (zero if grad_state is None else grad_state.to(work)) + c[NEXT_SCALE] * g_next
    big_h = (zero if grad_data is None else grad_data.to(work)) + c[DATA_WEIGHT] * big_g

    grad_history = []
    for k in needs_history:
        grad = weights[k] * big_g + (c[SAMPLE_SCALE] * big_h if k == 0 else 0)
        grad_history.append(grad.to(x.dtype))
    grad_output = output.new_empty(0)
    if needs_output:
        grad_output = c[OUTPUT_SCALE] * big_h
        if guided:
            grad_output = torch.cat([(1 - c[GUIDANCE]) * grad_output, c[GUIDANCE] * grad_output])
        grad_output = grad_output.to(output.dtype)
    grad_coefficients = coefficients.new_empty(0)
    if needs_coefficients:
        next_state = c[DATA_WEIGHT] * data
        for k, tensor in enumerate(past):
            next_state = next_state + weights[k] * tensor
        products = [
            (big_h * past[0]).sum(),
            (big_h * m).sum(),
            c[OUTPUT_SCALE] * (big_h * difference).sum() if guided else zero.sum(),
            (g_next * next_state).sum(),
            (big_g * data).sum(),
            *((big_g * tensor).sum() for tensor in past),
        ]
        grad_coefficients = torch.stack(products).to(coefficients.dtype)
    return grad_history, grad_output, grad_coefficients
