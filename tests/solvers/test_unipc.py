"""UniPC and UniP against diffusers; see also golden/test_multistep_solves.py."""

import pytest
from diffusers import UniPCMultistepScheduler
from multistep_tools import BETAS, SCHEDULE, configured, noise, scheduled, solve

from gas_ext.solvers import UniPCSolver

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")


@pytest.mark.parametrize("corrector", [True, False])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_diffusers(order, variant, corrector):
    steps = 8
    scheduler = UniPCMultistepScheduler(
        trained_betas=BETAS.numpy(),
        solver_order=order,
        solver_type=variant,
        final_sigmas_type="sigma_min",
        disable_corrector=[] if corrector else list(range(steps)),
    )
    times = configured(scheduler, steps)
    x = noise(2, 3, 4, 4)
    solver = UniPCSolver(SCHEDULE, steps, order, timesteps=times, variant=variant, corrector=corrector)
    assert (solve(solver, x) - scheduled(scheduler, times, x)).abs().max() <= 1e-9
