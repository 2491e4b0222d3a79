"""From a solver's parameters to its table of coefficients, and the gradient back to the parameters."""

from __future__ import annotations

import pytest
import torch
from cases import public_sample, thorough

from gas_ext import GeneralizedSolver, NoiseSchedule

ALPHAS_CUMPROD = torch.linspace(1.0 - 1e-4, 0.98, 1000, dtype=torch.float64).cumprod(0)
SCHEDULES = {"linear": NoiseSchedule.vp_linear(), "table": NoiseSchedule.vp_discrete(ALPHAS_CUMPROD)}


@pytest.mark.parametrize("steps", [4, thorough(10), thorough(20)])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_table(against, schedule, steps):
    """With the graph for a backward pass. The public code has no table; a solve of one number replaces it."""
    solver = GeneralizedSolver(SCHEDULES[schedule], steps)
    baselines = {"public code": public_sample((1,), steps)} if schedule == "linear" else {}
    against(
        lambda: solver.coefficients("epsilon"), baselines, subject="baking", schedule=schedule, steps=steps
    )


@pytest.mark.parametrize("steps", [4, thorough(10), thorough(20)])
def test_table_backward(against, steps):
    solver = GeneralizedSolver(SCHEDULES["linear"], steps)
    table = solver.coefficients("epsilon")
    results = [*table.rows, table.evaluation_timesteps]
    seeds = [torch.ones_like(result) for result in results]
    parameters = list(solver.parameters())

    def backward():
        torch.autograd.grad(results, parameters, seeds, retain_graph=True, allow_unused=True)

    forward = {"baking": lambda: solver.coefficients("epsilon")}
    against(backward, forward, subject="baking, backward", schedule="linear", steps=steps)
