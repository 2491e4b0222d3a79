"""Peak memory of a training solve, relative to its history: all states and data predictions."""

from __future__ import annotations

import pytest
from cases import LARGE, TRAINING, case, our_training_solve, public_training_solve, stack, thorough
from torch.profiler import ProfilerActivity, profile


def peak_bytes(function):
    """Most bytes allocated at any one time in a call and not before it, as torch's allocator counts them."""
    function()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    held = most = 0
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.parametrize("steps", [4, thorough(10)])
@pytest.mark.parametrize("size", [case(TRAINING), thorough(LARGE)])
def test_peak_memory(against, benchmark, size, steps):
    """The network stores nothing (it returns its input), so all memory is the solver's."""
    noise = stack(1, size)[0]
    forward, call = our_training_solve(noise, steps)
    public = public_training_solve(noise, steps)
    against(call, {"public code": public}, subject="training solve", size=size, steps=steps, order=steps)
    # x_0 is the noise, which exists already; x_1 to x_N and D_0 to D_{N-1} are new.
    benchmark.extra_info["memory"] = {
        "history": 2 * steps * noise.nbytes,
        "forward": peak_bytes(forward),
        "peak": peak_bytes(call),
        "public code": peak_bytes(public),
    }
