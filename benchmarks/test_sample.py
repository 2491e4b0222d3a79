"""A whole sample with a network that costs nothing: what the solver itself takes.

Each side prepares itself for the sample as its users do: this package computes its coefficient table,
diffusers sets its timesteps.
"""

import pytest
import torch
from conftest import SIZES, size_name

import gas_ext.sampler
from gas_ext import GASSampler, GeneralizedSolver, NoiseSchedule
from gas_ext.ops import fused_update, fused_update_reference

STEPS = 4


def our_sample(size, update):
    schedule = NoiseSchedule.vp_linear()
    solver = GeneralizedSolver(schedule, STEPS, order=2, theory_order=2, timesteps="logsnr")
    noise, output = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    sampler = GASSampler(solver, lambda x, t, condition: output, prediction_type="epsilon")

    def call():
        gas_ext.sampler.fused_update = update
        with torch.no_grad():
            sampler(noise)
        gas_ext.sampler.fused_update = fused_update

    return call


def diffusers_sample(size):
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        solver_order=2, algorithm_type="dpmsolver++", use_lu_lambdas=True, lower_order_final=False
    )
    noise, output = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))

    def call():
        with torch.no_grad():
            scheduler.set_timesteps(STEPS)
            x = noise
            for t in scheduler.timesteps:
                x = scheduler.step(output, t, x).prev_sample

    return call


@pytest.mark.parametrize("size", SIZES, ids=size_name)
@pytest.mark.parametrize("peer", ["diffusers", "reference"])
def test_sample(against, peer, size):
    if peer == "diffusers":
        pytest.importorskip("diffusers")
        against(
            our_sample(size, fused_update), diffusers_sample(size), "diffusers DPMSolverMultistepScheduler"
        )
    else:
        against(
            our_sample(size, fused_update),
            our_sample(size, fused_update_reference),
            "the same with reference updates",
        )
