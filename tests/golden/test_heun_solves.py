"""EDM's Heun sampler against the results of the public code."""

import pytest
import torch
from golden_data import arrays, index, tensor
from toy_networks import GaussianMixture

from gas_ext import GASSampler, NoiseSchedule
from gas_ext.solvers import HeunSolver

CASES = [case for case in index()["files"]["edm/heun.npz"]["cases"] if case.endswith("f64")]


def network(data: dict, tag: str, schedule: NoiseSchedule, dtype: torch.dtype):
    """The mixture in the schedule's coordinates; its own input and output in `dtype`."""
    parts = [tensor(data[f"{tag}/net/{name}"], dtype) for name in ("mean", "std", "logw")]
    mixture = GaussianMixture(*parts, joint=tag == "joint")

    def denoiser(x, t, condition):
        alpha = schedule.alpha(t)
        return mixture((x / alpha).to(dtype), (schedule.sigma(t) / alpha).to(dtype)).to(x.dtype)

    return denoiser


def solve(case: str, dtype: torch.dtype) -> tuple[torch.Tensor, GASSampler, object]:
    data, tag = arrays("edm/heun.npz"), case.split("/")[0]
    x = tensor(data[f"{tag}/latents"])
    steps = 35 if "heun18" in case else 11  # of 18 and of 6 times
    if "ablation" in case:
        schedule = NoiseSchedule.vp_linear(0.1, 20.0)
        solver = HeunSolver(schedule, steps, 1e-3, variable="time")
        x = x * schedule.sigma(1.0)
    else:
        schedule = NoiseSchedule.edm(0.002, 80.0)
        solver = HeunSolver(schedule, steps)
    sampler = GASSampler(solver, network(data, tag, schedule, dtype))
    result, trajectory = sampler(x, return_trajectory=True)
    return result, sampler, trajectory


@pytest.mark.parametrize("case", CASES)
def test_heun(case):
    data = arrays("edm/heun.npz")
    result, sampler, trajectory = solve(case, torch.float64)
    assert (result - tensor(data[f"{case}/result"])).abs().max() <= 1e-9
    nfe = index()["files"]["edm/heun.npz"]["cases"][case].get("nfe", sampler.solver.steps)
    assert sampler.evaluations == nfe
    if f"{case}/net_inputs" in data:
        inputs = torch.stack(trajectory.states[:-1])
        assert (inputs - tensor(data[f"{case}/net_inputs"])).abs().max() <= 1e-9
        sigmas = sampler.solver.schedule.sigma(trajectory.timesteps[:-1])
        assert torch.allclose(sigmas, tensor(data[f"{case}/net_sigmas"]), rtol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_heun_with_a_float32_network(case):
    expected = tensor(arrays("edm/heun.npz")[case.replace("f64", "f32net") + "/result"])
    exact = tensor(arrays("edm/heun.npz")[f"{case}/result"])
    floor = (expected - exact).abs().max()
    result, *_ = solve(case, torch.float32)
    assert (result - exact).abs().max() <= 2.0 * floor + 1e-6
