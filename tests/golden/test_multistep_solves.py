"""UniPC and iPNDM against the results of the public code."""

import pytest
import torch
from golden_data import arrays, index, knots, network_of, tensor

from gas_ext import GASSampler, NoiseSchedule
from gas_ext.solvers import IPNDMSolver, MultistepSolver, UniPCSolver

SPACINGS = {"logSNR": "logsnr", "time_uniform": "uniform", "time_quadratic": "quadratic"}


def cases(name: str) -> list[str]:
    return list(index()["files"][name]["cases"])


def unipc_case(case: str) -> tuple[dict, NoiseSchedule, UniPCSolver]:
    info = index()["files"]["unipc.npz"]["cases"][case]
    t_eps = info["t_eps"]
    pixel = info["kind"] == "pixel"
    schedule = NoiseSchedule.vp_from_edm(t_eps=t_eps) if pixel else knots("ldm", "f32")
    solver = UniPCSolver(
        schedule, info["steps"], info["order"], t_eps, SPACINGS[info["skip_type"]], variant=info["variant"]
    )
    return info, schedule, solver


def solve(
    solver: MultistepSolver, tag: str, data: dict, kind: str, guidance: float | None, dtype: torch.dtype
) -> torch.Tensor:
    network, prediction_type = network_of(tag, solver.schedule, dtype)
    sampler = GASSampler(solver, network, prediction_type, guidance)
    conditions = [] if guidance is None else [tensor(data[key], dtype) for key in ("ctx", "uctx")]
    return sampler(tensor(data[f"noise{kind}"], dtype), *conditions)


@pytest.mark.slow
@pytest.mark.parametrize("case", cases("unipc.npz"))
def test_unipc(case):
    data = arrays("unipc.npz")
    info, _, solver = unipc_case(case)
    expected = tensor(data[f"{case}/f64/result"])
    assert torch.allclose(solver.timesteps(), tensor(data[f"{case}/f64/timesteps"]), atol=1e-9, rtol=0)
    tag = "gm_3x8x8" if info["kind"] == "pixel" else "eps_4"
    found = solve(solver, tag, data, f"_{info['kind']}", info["guidance_scale"], torch.float64)
    assert (found - expected).abs().max() <= 1e-9
    single = solve(solver, tag, data, f"_{info['kind']}", info["guidance_scale"], torch.float32)
    assert (single - expected).abs().max() <= 2.0 * info["max_abs_f32_vs_f64"] + 1e-6


@pytest.mark.parametrize("case", cases("ipndm.npz"))
def test_ipndm(case):
    data = arrays("ipndm.npz")
    info = index()["files"]["ipndm.npz"]["cases"][case]
    times = data[f"{case}/f32/timesteps"]
    solver = IPNDMSolver(knots("sd", "f32"), info["steps"], info["order"], timesteps=tensor(times))
    found = solve(solver, "eps_4", data, "", info["guidance_scale"], torch.float64)
    assert (found - tensor(data[f"{case}/f64/result"])).abs().max() <= 1e-9
