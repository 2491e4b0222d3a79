"""Whole samples: with a network that costs nothing (the solver alone), and with the embedded teacher."""

from __future__ import annotations

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
    share_outside,
    stack,
    thorough,
    without_gradient,
)

from gas_ext import GASSampler
from gas_ext.teachers.demo import load_demo_teacher

STEPS = 4


@pytest.mark.parametrize("size", [case(SMALL), thorough(TRAINING), thorough(LARGE)])
def test_free_network(against, size):
    """Both sides include what users prepare: coefficients here, timesteps there."""
    baselines = {
        "public code": public_sample(size, STEPS),
        "UniPC": diffusers_sample("unipc", size, STEPS),
        "DPM-Solver++": diffusers_sample("dpmsolver++", size, STEPS),
    }
    function = our_sample(size, STEPS)
    against(function, baselines, subject="sample, free network", size=size, steps=STEPS)


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
    """The sampler of `from_pretrained("demo")` end to end, and its share of time outside the network."""
    teacher = load_demo_teacher()
    sampler = GASSampler.from_pretrained("demo")
    noise = stack(1, (batch, *teacher.sample_shape))[0]
    labels = torch.arange(batch) % 10
    parameters = peers.Parameters.untrained(STEPS, STEPS)
    parameters.timesteps = sampler.solver.timesteps().detach().float()
    log_alpha, network = peers.noise_prediction(teacher, labels)
    public = without_gradient(peers.unfused_solve, log_alpha, parameters, network, noise)
    function = without_gradient(sampler, noise, labels)
    size = tuple(noise.shape)
    against(function, {"public code": public}, subject="sample, embedded teacher", size=size, steps=STEPS)
    sampler.denoiser.predict = clock = Clock(sampler.denoiser.predict)
    benchmark.extra_info["share_outside_network"] = share_outside(clock, function, 5 if batch > 1 else 20)
