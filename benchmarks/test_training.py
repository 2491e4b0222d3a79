"""One training iteration, forward and backward through the whole solve and the optimizer's step."""

import pytest
import torch
from conftest import SIZES, size_name

import gas_ext.sampler
from gas_ext import GASSampler, GeneralizedSolver, NoiseSchedule
from gas_ext.losses import l1_loss
from gas_ext.ops import fused_update, fused_update_reference
from gas_ext.optimizers import FullMatrixAdam


def iteration(size, update):
    solver = GeneralizedSolver(NoiseSchedule.vp_linear(), 4, theory_order=2, timesteps="logsnr")
    noise, target = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    sampler = GASSampler(solver, lambda x, t, condition: torch.tanh(x))
    optimizer = FullMatrixAdam(solver.parameters(), lr=1e-6)

    def call():
        gas_ext.sampler.fused_update = update
        loss = l1_loss(sampler(noise), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        gas_ext.sampler.fused_update = fused_update

    return call


@pytest.mark.parametrize("size", SIZES, ids=size_name)
def test_training_iteration(against, size):
    against(
        iteration(size, fused_update),
        iteration(size, fused_update_reference),
        "the same with reference updates",
    )
