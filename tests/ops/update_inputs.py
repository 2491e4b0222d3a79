"""What the tests of the update compute from, and how near they must come."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gas_ext.ops.reference import FIRST_WEIGHT

STATE_DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


DTYPE_PAIRS = [
    (torch.float64, torch.float64),
    (torch.float32, torch.float32),
    (torch.float32, torch.float16),
    (torch.float32, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.bfloat16),
]


def make_inputs(
    shape: tuple[int, ...],
    terms: int = 3,
    guided: bool = False,
    dtype: torch.dtype = torch.float32,
    output_dtype: torch.dtype | None = None,
    *,
    device: torch.device,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """History, output and coefficients of moderate size, from a seed."""
    generator = torch.Generator().manual_seed(0)
    history = [torch.randn(shape, generator=generator).to(dtype) for _ in range(terms)]
    output_shape = (2 * shape[0], *shape[1:]) if guided else shape
    output = torch.randn(output_shape, generator=generator).to(output_dtype or dtype)
    coefficients = torch.randn(FIRST_WEIGHT + terms, generator=generator, dtype=torch.float64)
    return [t.to(device) for t in history], output.to(device), coefficients.to(device)


def to_float64(
    history: list[Tensor], output: Tensor, coefficients: Tensor
) -> tuple[list[Tensor], Tensor, Tensor]:
    return [t.double() for t in history], output.double(), coefficients.double()


def assert_as_good_as_torch(actual: Tensor, same_dtype: Tensor, exact: Tensor, atol: float) -> None:
    """Error to the float64 reference at most twice that of torch's own formula in the same dtype."""
    error = (actual.double() - exact).abs().max().item() if exact.numel() else 0.0
    allowed = (same_dtype.double() - exact).abs().max().item() if exact.numel() else 0.0
    assert error <= 2 * allowed + atol, f"error {error}, torch's own {allowed}"


def atol_of(dtype: torch.dtype) -> float:
    """Two ulp at magnitude 8, the size of the values here."""
    return 16 * torch.finfo(dtype).eps


def gradients(
    function: Callable[..., tuple[Tensor, ...]],
    inputs: tuple[list[Tensor], Tensor, Tensor],
    **options: object,
) -> list[Tensor]:
    """Gradients of a fixed weighted sum of all outputs with respect to every input."""
    history, output, coefficients = inputs
    leaves = [t.detach().clone().requires_grad_() for t in (*history, output, coefficients)]
    results = function(leaves[:-2], leaves[-2], leaves[-1], **options)
    total = torch.zeros((), dtype=torch.float64, device=output.device)
    for i, value in enumerate(results):
        weights = torch.cos(torch.arange(value.numel(), dtype=torch.float64) + i).reshape(value.shape)
        total = total + (weights.to(value) * value).double().sum()
    return list(torch.autograd.grad(total, leaves))
