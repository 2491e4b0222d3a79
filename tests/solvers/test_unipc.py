"""UniPC and UniP against diffusers; see also golden/test_multistep_solves.py."""

import pytest
import torch
from diffusers import UniPCMultistepScheduler
from multistep_tools import BETAS, SCHEDULE, configured, errors, noise, scheduled, solve

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


@pytest.mark.parametrize("corrector", [True, False])
def test_more_steps_come_closer(corrector):
    first, second, third = errors(UniPCSolver, (10, 20, 40), corrector=corrector)
    assert first > 3.0 * second > 9.0 * third


def test_the_predictor_of_order_one_is_ddim():
    solver = UniPCSolver(SCHEDULE, 3, 1, corrector=False)
    assert solver.weights().data[:, 1].abs().max() == 0
    sigma, alpha = SCHEDULE.sigma(solver.timesteps()), SCHEDULE.alpha(solver.timesteps())
    ratio = sigma[1:] / sigma[:-1]
    assert torch.allclose(solver.weights().data[:, 0], alpha[1:] - ratio * alpha[:-1], atol=1e-12)


def test_description():
    described = UniPCSolver(SCHEDULE, 4, variant="bh2", corrector=False).describe()
    assert (described["variant"], described["corrector"], described["order"]) == ("bh2", False, 3)


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="bh1"):
        UniPCSolver(SCHEDULE, 4, variant="bh3")
