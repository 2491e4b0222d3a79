"""Networks in half precision with float32 states: the update writes their next input."""

import pytest
import torch
from sampler_networks import VP, noise_of, randomize
from torch.utils._python_dispatch import TorchDispatchMode

from gas_ext import Denoiser, GASSampler, GeneralizedSolver

HALF = [torch.float16, torch.bfloat16]


class HalfNetwork(Denoiser):
    """Casts states to `dtype` and its output back, and declares that if `declares`."""

    def __init__(self, dtype, declares):
        super().__init__(schedule=VP, prediction_type="sample", sample_shape=(6,), condition_kind="tensor")
        self.dtype, self.declares = dtype, declares
        weights = torch.randn(6, 6, generator=torch.Generator().manual_seed(1)) / 3
        self.register_buffer("weights", weights.to(dtype))
        self.seen = []

    @property
    def input_dtype(self):
        return self.dtype if self.declares else None

    def predict(self, x, t, condition):
        self.seen.append(x.dtype)
        output = torch.tanh(x.to(self.dtype) @ self.weights + t.to(self.dtype))
        if condition is not None:
            output = output + condition.to(self.dtype)
        return output.to(x.dtype)


class Casts(TorchDispatchMode):
    """Counts the conversions of whole batches."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and args[0].ndim == 2:
            self.count += 1
        return func(*args, **(kwargs or {}))


def samplers(dtype, guidance_scale=None):
    """One sampler whose network declares its dtype, and one whose does not."""
    solver = randomize(GeneralizedSolver(VP, 4, t_eps=1e-2), 0, 0.02)
    return [
        GASSampler(solver, HalfNetwork(dtype, declares), None, guidance_scale) for declares in (True, False)
    ]


@pytest.mark.parametrize("guidance_scale", [None, 2.0])
@pytest.mark.parametrize("dtype", HALF)
def test_the_numbers_are_the_same(dtype, guidance_scale):
    conditions = torch.full((3, 1), 0.3), torch.zeros(1, 1)
    results = []
    for sampler in samplers(dtype, guidance_scale):
        noise = noise_of(3, 6, dtype=torch.float32).requires_grad_()
        sample, trajectory = sampler(noise, *conditions, return_trajectory=True)
        grads = torch.autograd.grad(sample.square().sum(), [noise, *sampler.solver.parameters()])
        assert {state.dtype for state in trajectory.states} == {torch.float32}
        results.append(([sample, *trajectory.states, *trajectory.data], grads))
    (declared, declared_grads), (plain, plain_grads) = results
    torch.testing.assert_close(declared, plain, rtol=0, atol=0)
    torch.testing.assert_close(declared_grads, plain_grads, rtol=1e-5, atol=1e-6)  # added up in another order


@pytest.mark.parametrize("dtype", HALF)
def test_casts_are_gone(dtype):
    noise, counts = noise_of(3, 6, dtype=torch.float32), []
    for sampler in samplers(dtype):
        with torch.no_grad(), Casts() as casts:
            sampler(noise)
        counts.append(casts.count)
    assert counts == [1, 8]  # of the noise; of each input and each output


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_states_are_given_as_they_are(dtype):
    declared, _ = samplers(torch.bfloat16)
    with torch.no_grad():
        sample = declared(noise_of(3, 6, dtype=dtype))
    assert set(declared.denoiser.seen) == {dtype}
    assert sample.dtype == dtype


def test_under_autocast_the_states_are_given():
    """There the output may be of a higher precision, which the dtype of the states preserves."""
    declared, plain = samplers(torch.float16)
    noise = noise_of(3, 6, dtype=torch.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(declared(noise), plain(noise))
    assert set(declared.denoiser.seen) == {torch.float32}


@pytest.mark.parametrize("dtype", HALF)
def test_recomputing_the_network_changes_nothing(dtype):
    grads = []
    for recompute in (False, True):
        declared, _ = samplers(dtype)
        declared.recompute = recompute
        noise = noise_of(3, 6, dtype=torch.float32).requires_grad_()
        grads.append(
            torch.autograd.grad(declared(noise).square().sum(), [noise, *declared.solver.parameters()])
        )
        assert set(declared.denoiser.seen) == {dtype}
    torch.testing.assert_close(*grads, rtol=0, atol=0)


def test_on_the_meta_device():
    declared, _ = samplers(torch.bfloat16)
    with torch.no_grad():
        assert declared.to("meta")(torch.empty(3, 6, device="meta")).dtype == torch.float32


def test_a_float32_network_is_given_the_states():
    declared, plain = samplers(torch.float32)
    noise = noise_of(3, 6, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(declared(noise), plain(noise))
        assert declared.denoiser.input_dtype == torch.float32
        declared.double()
        declared.denoiser.dtype = torch.float64
        declared(noise)
    assert set(declared.denoiser.seen) == {torch.float32}
