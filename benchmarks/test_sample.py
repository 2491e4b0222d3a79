"""Whole samples: with a network that costs nothing, what the solver takes; with the embedded teacher, all."""

from __future__ import annotations

import statistics
import time

import peers
import pytest
import torch
from cases import (
    LARGE,
    SMALL,
    TRAINING,
    case,
    diffusers_sample,
    our_sample,
    public_sample,
    stack,
    thorough,
    without_gradient,
)

from gas_ext import GASSampler
from gas_ext.teachers.demo import load_demo_teacher

STEPS = 4


@pytest.mark.parametrize("size", [case(SMALL), thorough(TRAINING), thorough(LARGE)])
def test_free_network(against, size):
    """Each side prepares itself as its users do: coefficients here, timesteps there."""
    rivals = {
        "public code": public_sample(size, STEPS),
        "UniPC": diffusers_sample("unipc", size, STEPS),
        "DPM-Solver++": diffusers_sample("dpmsolver++", size, STEPS),
    }
    function = our_sample(size, STEPS)
    against(function, rivals, subject="sample, free network", size=size, steps=STEPS)


class Clock:
    """A network that counts the seconds spent in it."""

    def __init__(self, network):
        self.network = network
        self.seconds = 0.0

    def __call__(self, *arguments):
        start = time.perf_counter()
        output = self.network(*arguments)
        self.seconds += time.perf_counter() - start
        return output


@pytest.mark.parametrize("batch", [1, thorough(8), thorough(32)])
def test_embedded_teacher(against, benchmark, batch):
    """The sampler of `from_pretrained("demo")`, end to end, and its share of time outside the network."""
    teacher = load_demo_teacher()
    sampler = GASSampler.from_pretrained("demo")
    noise = stack(1, (batch, *teacher.sample_shape))[0]
    labels = torch.arange(batch) % 10
    times = sampler.solver.timesteps().detach().float()
    parameters = peers.Parameters.untrained(STEPS, STEPS)
    schedule = teacher.schedule

    def noise_prediction(x, t):  # as the public code wraps a network that predicts the sample
        output = teacher(x, t.double(), labels)
        return ((x - schedule.alpha(t) * output) / schedule.sigma(t)).to(x.dtype)

    log_alpha = peers.linear_log_alpha(schedule.beta_0, schedule.beta_1)
    parameters.timesteps = times
    against(
        without_gradient(sampler, noise, labels),
        {
            "public code": without_gradient(
                peers.unfused_solve, log_alpha, parameters, noise_prediction, noise
            )
        },
        subject="sample, embedded teacher",
        size=tuple(noise.shape),
        steps=STEPS,
    )
    clock = Clock(sampler.denoiser.predict)
    sampler.denoiser.predict = clock
    shares = []
    with torch.no_grad():
        for _ in range(5 if batch > 1 else 20):
            clock.seconds, start = 0.0, time.perf_counter()
            sampler(noise, labels)
            shares.append(1.0 - clock.seconds / (time.perf_counter() - start))
    benchmark.extra_info["share_outside_network"] = statistics.median(shares)
