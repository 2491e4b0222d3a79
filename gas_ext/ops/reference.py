"""The fused update in plain torch: what every kernel is compared with, and what runs without them.

Both functions are written from the equations of `docs/kernels.md` with ordinary tensor operations, so
autograd differentiates them to any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Places of the scalars that stand before the history weights in a coefficient row.
SAMPLE_SCALE = 0  # p: D_n = p x_n + q m
OUTPUT_SCALE = 1  # q
GUIDANCE = 2  # w: m = m_u + w (m_c - m_u)
NEXT_SCALE = 3  # s: next network input = s x_{n+1}
DATA_WEIGHT = 4  # c_nn: weight of the fresh D_n
FIRST_WEIGHT = 5  # weights of the history tensors follow


class UpdateResult(NamedTuple):
    """What one solver step yields: D_n, x_{n+1} and, when asked, the next network input."""

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
