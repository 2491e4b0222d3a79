"""What only a CUDA device can show. Run with ``pytest -m gpu``; not run on a GPU yet."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import torch
from gpu import require_cuda
from torch import Tensor

from gas_ext.ops import fused_update, fused_update_reference

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _device() -> None:
    require_cuda()


def make_inputs(
    numel: int = 100_003, terms: int = 5, device: str = "cuda"
) -> tuple[list[Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    history = [torch.randn(numel, generator=generator).to(device) for _ in range(terms)]
    output = torch.randn(numel, generator=generator).to(device)
    row = torch.randn(5 + terms, generator=generator, dtype=torch.float64).to(device)
    return history, output, row


def with_gradients(history: list[Tensor], output: Tensor, row: Tensor) -> list[Tensor]:
    """Results and all gradients of one update."""
    leaves = [t.detach().clone().requires_grad_() for t in (*history, output, row)]
    result = fused_update(leaves[:-2], leaves[-2], leaves[-1], next_input_dtype=torch.bfloat16)
    assert result.next_input is not None
    loss = result.state.sum() + result.data.square().sum() + result.next_input.float().sum()
    return [*result, *torch.autograd.grad(loss, leaves)]


def test_same_bits_on_every_run_and_as_the_cpu() -> None:
    first, second = with_gradients(*make_inputs()), with_gradients(*make_inputs())
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    on_cpu = with_gradients(*make_inputs(device="cpu"))
    for gpu, cpu in zip(first[:2], on_cpu[:2], strict=True):
        assert torch.equal(gpu.cpu(), cpu)


def test_runs_on_the_current_stream() -> None:
    history, output, row = make_inputs(2**22)
    expected = fused_update_reference(history, output, row).state
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # what the other stream would not wait for
        history = [2 * t for t in history]
        output = 2 * output
        result = fused_update(history, output, row).state
    stream.synchronize()
    torch.testing.assert_close(result, 2 * expected, rtol=1e-5, atol=1e-4)


def test_does_not_synchronize() -> None:
    inputs = make_inputs()
    with_gradients(*inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with_gradients(*inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_graph_replay_sees_changed_coefficients() -> None:
    history, output, row = make_inputs()
    with torch.no_grad():
        fused_update(history, output, row)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = fused_update(history, output, row)
        row.mul_(0.5)
        output.add_(1.0)
        graph.replay()
        expected = fused_update_reference(history, output, row)
    torch.testing.assert_close(result.state, expected.state, rtol=1e-5, atol=1e-5)


def test_each_device_is_its_own() -> None:
    require_cuda(2)
    history, output, row = make_inputs(device="cuda:1")
    with torch.cuda.device(0):
        result = fused_update(history, output, row)
    assert result.state.device == torch.device("cuda:1")
    torch.testing.assert_close(
        result.state, fused_update_reference(history, output, row).state, rtol=1e-5, atol=1e-5
    )
    with pytest.raises(ValueError, match="cuda:0"):
        fused_update([t.to("cuda:0") for t in history], output, row)


def test_compile_reduce_overhead() -> None:
    history, output, row = make_inputs()

    def two_steps(output: Tensor, row: Tensor, *history: Tensor) -> Tensor:
        first = fused_update(history, output.sin(), row)
        return fused_update([first.state, *history[1:]], first.data.cos(), row).state

    compiled = torch.compile(two_steps, fullgraph=True, mode="reduce-overhead")
    with torch.no_grad():
        for _ in range(3):
            result = compiled(output, row, *history).clone()
    torch.testing.assert_close(result, two_steps(output, row, *history), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_compute_sanitizer_finds_nothing(tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.fail("compute-sanitizer was not found; install the CUDA toolkit's sanitizer package")
    code = (
        "import torch; from gas_ext.ops import fused_update\n"
        "for n in (1, 17, 257, 4097):\n"
        "    h = [torch.ones(n, device='cuda', requires_grad=True) for _ in range(11)]\n"
        "    row = torch.ones(16, device='cuda', dtype=torch.float64, requires_grad=True)\n"
        "    fused_update(h, h[0].sin(), row).state.sum().backward()\n"
        "torch.cuda.synchronize()\n"
    )
    done = subprocess.run(
        [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", code],
        # One allocation for each tensor: in the cache's large blocks an access past the end goes unseen.
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
