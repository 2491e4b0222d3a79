import pytest
import torch
from multistep_tools import SCHEDULE

from gas_ext import NoiseSchedule
from gas_ext.solvers import GITS_SIGMAS, IPNDMSolver, gits_timesteps


@pytest.mark.parametrize("steps", sorted(GITS_SIGMAS))
def test_the_table_s_noise_levels(steps):
    times = gits_timesteps(SCHEDULE, steps)
    assert times.shape == (steps + 1,)
    assert torch.allclose(torch.exp(-SCHEDULE.lambda_(times)), torch.tensor(GITS_SIGMAS[steps]).double())
    assert torch.equal(IPNDMSolver(SCHEDULE, steps, 2, timesteps="gits").timesteps(), times)


def test_steps_without_a_table():
    with pytest.raises(ValueError, match="5, 6, 7 or 8"):
        gits_timesteps(SCHEDULE, 9)


@pytest.mark.parametrize(
    ("schedule", "start"), [(NoiseSchedule.vp_linear(), "152.2"), (NoiseSchedule.flow(), "inf")]
)
def test_other_schedules(schedule, start):
    with pytest.raises(ValueError, match=f"it starts at {start}; use another spacing"):
        gits_timesteps(schedule, 5)
