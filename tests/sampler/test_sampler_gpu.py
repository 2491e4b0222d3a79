"""A whole solve, and its training, on a CUDA device. Run with ``pytest -m gpu``; not run on a GPU yet."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from gpu import require_cuda
from torch import Tensor, nn

from gas_ext import GASSampler, GeneralizedSolver, NoiseSchedule
from gas_ext.solvers import DPMSolver, UniPCSolver
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


@pytest.fixture
def no_synchronization() -> Iterator[Callable[[], None]]:
    """Call it once warm; from then on, waiting for the device is an error."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def test_a_learning_solve_does_not_synchronize(no_synchronization: Callable[[], None]) -> None:
    sampler, x = make_sampler("cuda"), noise("cuda")
    sampler(x).sum().backward()
    no_synchronization()
    sampler(x).sum().backward()


@pytest.mark.parametrize("cuda_graph", [False, True])
@pytest.mark.parametrize("solver_type", [GeneralizedSolver, UniPCSolver, DPMSolver])
def test_sampling_does_not_synchronize(
    solver_type: type, cuda_graph: bool, no_synchronization: Callable[[], None]
) -> None:
    solver = solver_type(NoiseSchedule.vp_discrete(torch.linspace(0.999, 0.01, 100)), 4, t_eps=0.02).to(
        "cuda"
    )
    sampler, x = GASSampler(solver, denoiser, "sample", cuda_graph=cuda_graph), noise("cuda")
    with torch.no_grad():
        expected = sampler(x)
        no_synchronization()
        found = sampler(x)
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found, expected)


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


def make_pair(solver: nn.Module, network: nn.Module, guidance_scale: float | None = None) -> list[GASSampler]:
    """A sampler with CUDA graphs, and one without, of one solver and network."""
    solver, network = solver.to("cuda"), network.to("cuda")
    return [
        GASSampler(solver, network, "sample", guidance_scale, cuda_graph=cuda_graph)
        for cuda_graph in (True, False)
    ]


class Convolution(nn.Module):
    """A network with weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        return denoiser(self.layer(x), t, condition)


def assert_equal_solves(graphed: GASSampler, plain: GASSampler, *inputs: Tensor) -> Tensor:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")  # a graph is used
        found, expected = graphed(*inputs), plain(*inputs)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    return found


@pytest.mark.parametrize("guidance_scale", [None, 3.0])
@pytest.mark.parametrize("solver_type", [GeneralizedSolver, UniPCSolver])
def test_cuda_graphs_equal_the_plain_loop(solver_type: type, guidance_scale: float | None) -> None:
    graphed, plain = make_pair(solver_type(NoiseSchedule.vp_linear(), 4), Convolution(), guidance_scale)
    samples = []
    for scale in (1.0, 0.5, 0.1):
        condition = torch.full((3,), scale, device="cuda")
        found = assert_equal_solves(
            graphed, plain, scale * noise("cuda"), condition, torch.zeros(1, device="cuda")
        )
        samples.append((found, found.clone()))
    assert all(torch.equal(found, copied) for found, copied in samples)


def test_a_graph_recorded_by_hand_keeps_its_coefficients() -> None:
    """Warm up on a side stream, record, continue step by step on another: as torch's documentation has it."""
    sampler = GASSampler(UniPCSolver(NoiseSchedule.vp_linear(), 4).to("cuda"), denoiser, "sample")
    given = noise("cuda")
    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            sampler(given)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            sample = sampler(given)
        expected = sampler(given)  # computes its own coefficients
        other = [torch.full((64,), torch.nan, device="cuda") for _ in range(64)]  # overwrites them
        graph.replay()
    assert len(other) == 64
    assert torch.equal(sample, expected)


def test_cuda_graphs_follow_written_and_moved_parameters() -> None:
    graphed, plain = make_pair(GeneralizedSolver(NoiseSchedule.vp_linear(), 4), Convolution())
    x = noise("cuda")
    before = assert_equal_solves(graphed, plain, x)
    with torch.no_grad():
        graphed.solver.data_corrections.add_(0.05)
        graphed.denoiser.layer.weight.mul_(1.5)
        written = assert_equal_solves(graphed, plain, x)
        weight = graphed.denoiser.layer.weight
        weight.data = weight.data + 0.1
        moved = assert_equal_solves(graphed, plain, x)
    assert not torch.equal(before, written)
    assert not torch.equal(written, moved)


def test_cuda_graphs_of_many_shapes_dtypes_and_modes() -> None:
    graphed, plain = make_pair(GeneralizedSolver(NoiseSchedule.vp_linear(), 4), nn.Identity())
    graphed.denoiser.forward = plain.denoiser.forward = denoiser
    for dtype in (torch.float32, torch.float64, torch.float16):
        for batch in (1, 2, 3, 1):
            x = noise("cuda")[:batch].to(dtype)
            assert_equal_solves(graphed, plain, x, torch.ones(batch, device="cuda"))
            with torch.inference_mode():
                assert_equal_solves(graphed, plain, 2 * x, torch.ones(batch, device="cuda"))


def test_cuda_graphs_with_autocast_follow_the_weights() -> None:
    graphed, plain = make_pair(GeneralizedSolver(NoiseSchedule.vp_linear(), 4), Convolution())
    x = noise("cuda")
    for _ in range(2):
        with torch.autocast("cuda", torch.bfloat16):
            assert_equal_solves(graphed, plain, x)
        with torch.no_grad():
            graphed.denoiser.layer.weight.mul_(1.5)


def test_a_network_that_cannot_be_captured_runs_step_by_step() -> None:
    solver, x = GeneralizedSolver(NoiseSchedule.vp_linear(), 4).to("cuda"), noise("cuda")

    def reads(x: Tensor, t: Tensor, condition: object) -> Tensor:
        return x * t.item()

    graphed = GASSampler(solver, reads, "sample", cuda_graph=True)
    with torch.no_grad():
        expected = GASSampler(solver, reads, "sample")(x)
        with pytest.warns(RuntimeWarning, match="cannot be recorded") as warned:
            found = [graphed(x), graphed(x)]
    assert len(warned) == 1
    for result in found:
        torch.testing.assert_close(result, expected)
    other, plain = make_pair(solver, Convolution())  # the failure left nothing behind
    assert_equal_solves(other, plain, x)


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
