"""The fake kernels on a CUDA device, which needs none: shapes, dtypes, strides and device of every result."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from gas_ext.ops import library

pytestmark = pytest.mark.skipif(
    not library.CUDA_STATUS.loaded, reason=f"no CUDA operators: {library.CUDA_STATUS.reason}"
)

PAIRS = [
    (torch.float64, torch.float64),
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float16, torch.float16),
]


def layouts(tensor: Tensor) -> list[Tensor]:
    """The tensor contiguous, channels_last, transposed, and sliced (not dense)."""
    padded = tensor.new_empty(*tensor.shape[:-1], 2 * tensor.shape[-1])
    return [
        tensor,
        tensor.contiguous(memory_format=torch.channels_last),
        tensor.transpose(0, -1).contiguous().transpose(0, -1),
        padded[..., ::2],
    ]


def signature(tensor: Tensor) -> tuple[torch.Size, tuple[int, ...], torch.dtype]:
    return tensor.shape, tensor.stride(), tensor.dtype


def run(history: list[Tensor], output: Tensor, row: Tensor, guided: bool) -> list[Tensor]:
    """All results of forward and backward operators."""
    ops = torch.ops.gas_ext
    forward = ops.fused_update(history, output, row, guided, output.dtype)
    without = ops.fused_update(history, output, row, guided, None)
    backward = ops.fused_update_backward(
        *forward, history, output, forward[1], row, guided, [0, 2], True, True
    )
    return [*forward, *without, *backward[0], *backward[1:]]


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(("dtype", "output_dtype"), PAIRS)
@pytest.mark.parametrize("layout", range(4))
def test_fakes_on_cuda_agree_with_the_operators(
    layout: int, dtype: torch.dtype, output_dtype: torch.dtype, guided: bool
) -> None:
    """CPU and CUDA operators allocate by the same code, so the real CPU results are the truth."""
    history = [layouts(torch.zeros(2, 3, 4, 5, dtype=dtype))[layout] for _ in range(3)]
    output = layouts(torch.zeros(4 if guided else 2, 3, 4, 5, dtype=output_dtype))[layout]
    row = torch.zeros(8, dtype=torch.float64)
    expected = [signature(t) for t in run(history, output, row, guided)]
    with FakeTensorMode():

        def fake(tensor: Tensor) -> Tensor:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")

        results = run([fake(t) for t in history], fake(output), fake(row), guided)
        assert [signature(t) for t in results] == expected
        assert {t.device.type for t in results} == {"cuda"}
