"""A whole solve, and its training, on a CUDA device. Run with ``pytest -m gpu``; not run on a GPU yet."""

from __future__ import annotations

import pytest
import torch
from gpu import require_cuda
from torch import Tensor

from gas_ext import GASSampler, GeneralizedSolver, NoiseSchedule
from gas_ext.training import TrainingConfig, train_solver

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _device() -> None:
    require_cuda()


def denoiser(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
    """Return a smooth function of state, time and condition."""
    y = torch.tanh(x) * torch.cos(t).to(x.dtype)
    return y if condition is None else y + condition.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def make_sampler(device: str, guidance_scale: float | None = None) -> GASSampler:
    solver = GeneralizedSolver(NoiseSchedule.vp_linear(), steps=4, timesteps="logsnr").to(device)
    with torch.no_grad():
        for parameter in solver.parameters():
            parameter.add_(0.01)
    return GASSampler(solver, denoiser, "sample", guidance_scale)


def noise(device: str) -> Tensor:
    return torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0)).to(device)


@pytest.mark.parametrize("guidance_scale", [None, 3.0])
def test_a_solve_and_its_gradients_equal_the_cpu(guidance_scale: float | None) -> None:
    results = []
    for device in ("cpu", "cuda"):
        sampler = make_sampler(device, guidance_scale)
        condition = torch.tensor([0.1, 0.2, 0.3], device=device)
        sample = sampler(noise(device), condition, torch.zeros(1, device=device))
        grads = torch.autograd.grad(sample.square().mean(), list(sampler.solver.parameters()))
        results.append([sample, *grads])
    for cpu, cuda in zip(*results, strict=True):
        torch.testing.assert_close(cuda.cpu(), cpu, rtol=1e-4, atol=1e-5)


def test_a_solve_does_not_synchronize() -> None:
    sampler, x = make_sampler("cuda"), noise("cuda")
    sampler(x).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        sampler(x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_captured_solve_follows_changed_parameters() -> None:
    sampler, x = make_sampler("cuda"), noise("cuda")
    with torch.no_grad():
        for _ in range(3):
            sampler(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = sampler(x)
        sampler.solver.data_corrections.add_(0.05)
        x.mul_(0.5)
        graph.replay()
        torch.testing.assert_close(result, sampler(x), rtol=1e-6, atol=1e-6)


def test_a_compiled_solve_equals_the_eager_one() -> None:
    sampler, x = make_sampler("cuda"), noise("cuda")
    compiled = torch.compile(sampler, fullgraph=True, mode="reduce-overhead")
    with torch.no_grad():
        for _ in range(3):
            result = compiled(x).clone()
        torch.testing.assert_close(result, sampler(x), rtol=1e-5, atol=1e-5)


def test_training_on_a_gpu_repeats_its_bits() -> None:
    x = noise("cuda")
    solvers = []
    for _ in range(2):
        solver = make_sampler("cuda").solver
        train_solver(
            solver, denoiser, x, 0.5 * x, config=TrainingConfig(iterations=5), prediction_type="sample"
        )
        solvers.append(solver)
    for a, b in zip(solvers[0].parameters(), solvers[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_embedded_model_samples_on_a_gpu() -> None:
    labels = torch.arange(4)
    samples = []
    for device in ("cpu", "cuda"):
        x = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0)).to(device)
        with torch.no_grad():
            samples.append(GASSampler.from_pretrained("demo", device)(x, labels.to(device)).cpu())
    torch.testing.assert_close(samples[1], samples[0], rtol=1e-3, atol=1e-3)
