"""What torch.ops.gas_ext refuses, and in which words."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from update_inputs import make_inputs


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda h, m, c: ([], m, c), "The history has 0 tensors; give 1 to 64, x_n first."),
        (lambda h, m, c: (h * 22, m, c), "The history has 66 tensors; give 1 to 64, x_n first."),
        (lambda h, m, c: ([t.long() for t in h], m, c), "The history is Long; convert it to float64, "),
        (
            lambda h, m, c: (h, m.long(), c),
            "Long output with a float32 history; convert the output to float32.",
        ),
        (lambda h, m, c: (h, m[:1], c), "The output has shape (1, 3), but history[0] has (2, 3); give "),
        (lambda h, m, c: (h, m, c[:-1]), "have shape (7,); give a vector of 5 + 3 numbers for 3 history"),
        (lambda h, m, c: (h, m, c.half()), "The coefficients are float16; give float64 or float32."),
        (
            lambda h, m, c: (h, m, c.repeat(2)[::2]),
            "The coefficients are a strided view; make them contiguous.",
        ),
        (
            lambda h, m, c: ([h[0], h[1][:1], h[2]], m, c),
            "history[1] has shape (1, 3), but history[0] has (2, 3)",
        ),
        (
            lambda h, m, c: ([h[0], h[1], h[2].double()], m, c),
            "history[2] is float64; convert it to float32.",
        ),
        (
            lambda h, m, c: (h, m, c, True),
            "shape (2, 3), but with guidance it must hold the batch of (2, 3) twice",
        ),
        (
            lambda h, m, c: ([h[0][0, 0]], m, c[:6], True),
            "needs a batch dimension to double, but history[0] has none",
        ),
        (
            lambda h, m, c: (h, m.bfloat16(), c, False, torch.float16),
            "next input is float16; choose the dtype of ",
        ),
    ],
)
def test_operators_check_for_themselves(
    device: torch.device, change: Callable[..., tuple], words: str
) -> None:
    """Direct calls of torch.ops.gas_ext never read past a tensor's end, and say what is wrong."""
    arguments = change(*make_inputs((2, 3), device=device))
    with pytest.raises(RuntimeError, match=re.escape(words)):
        torch.ops.gas_ext.fused_update(*arguments, *(False, None)[len(arguments) - 3 :])


def test_operators_check_gradients_and_out(device: torch.device) -> None:
    h, m, c = make_inputs((2, 3), device=device)

    def backward(grad_state: Tensor, grad_next: Tensor | None, needs: list[int]) -> object:
        arguments = (None, grad_state, grad_next, h, m, None, c, False, needs, True, True)
        return torch.ops.gas_ext.fused_update_backward(*arguments)

    def out(data: Tensor, state: Tensor) -> object:
        return torch.ops.gas_ext.fused_update_out(h, m, c, False, data, state, None)

    for call, words in (
        (lambda: backward(m.double(), None, []), "grad_state is float64; convert it to float32."),
        (lambda: backward(m[:1], None, []), "grad_state has shape (1, 3), but history[0] has (2, 3)"),
        (lambda: backward(m, m, []), "needs x_{n+1}, but state is None; pass it."),
        (
            lambda: backward(m, None, [3]),
            "needs_history holds 3, but the history has 3 tensors; name each of 0 to 2",
        ),
        (lambda: backward(m, None, [1, 1]), "needs_history holds 1, "),
        (lambda: out(m.double(), torch.empty_like(m)), "out[0] is float64; convert it to float32."),
        (
            lambda: out(torch.empty_like(m), torch.empty(3, 2, device=device).t()),
            "out[1] has other strides than history[0]",
        ),
    ):
        with pytest.raises(RuntimeError, match=re.escape(words)):
            call()
