"""One training iteration of `train`: a solve, its loss, the backward pass, the optimizer's step."""

from __future__ import annotations

import time

import peers
import pytest
import torch
from cases import LARGE, TRAINING, case, share_outside, stack, thorough

from gas_ext import GASSampler, GeneralizedSolver, NoiseSchedule
from gas_ext.samples import SampleBatch
from gas_ext.teachers.demo import load_demo_teacher
from gas_ext.training import TrainingConfig
from gas_ext.training.learner import Learner
from gas_ext.training.losses import l1_loss
from gas_ext.training.objective import Objective

STEPS = 4
ITERATIONS = 5  # with a clock in the network
CONFIG = TrainingConfig(optimizer="adam", clip=1.0, time_rate=1e-6, offset_rate=1e-6, coefficient_rate=1e-6)


def our_iteration(schedule, network, noise, target, condition=None):
    solver = GeneralizedSolver(schedule, STEPS)
    learner = Learner(solver, Objective(GASSampler(solver, network), l1_loss), CONFIG)
    batch = SampleBatch(noise, target, condition, None, None)
    return lambda: learner.step(batch)


def public_iteration(log_alpha, network, noise, target):
    parameters = peers.Parameters.untrained(STEPS, STEPS).requires_grad_()
    learned = [parameters.timesteps, parameters.offsets, parameters.c, parameters.a]
    optimizer = torch.optim.Adam(learned, lr=1e-6)

    def call():
        states, _ = peers.unfused_solve(log_alpha, parameters, network, noise)
        loss = l1_loss(states[-1], target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        return loss.item()

    return call


@pytest.mark.parametrize("size", [case(TRAINING), thorough(LARGE)])
def test_free_network(against, size):
    """Cost of the solver alone: the network returns its input, a noise prediction in the public code."""
    noise, target = stack(2, size)
    baselines = {"public code": public_iteration(peers.linear_log_alpha(), lambda x, t: x, noise, target)}
    function = our_iteration(NoiseSchedule.vp_linear(), lambda x, t, condition: x, noise, target)
    against(function, baselines, subject="training, free network", size=size, steps=STEPS)


class Clock:
    """Counts the seconds of a network's forward and backward passes inside a training iteration.

    The network gets a separate graph, which runs when the gradient of its output arrives. The work is the
    same, and everything outside that graph is not counted.
    """

    def __init__(self, network):
        self.network = network
        self.seconds = 0.0

    def __call__(self, x, t, condition):
        return _Clocked.apply(self, condition, x, t)


class _Clocked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, clock, condition, x, t):
        start = time.perf_counter()
        wanted = ctx.needs_input_grad[2:]
        with torch.enable_grad():
            inputs = [v.detach().requires_grad_(w) for v, w in zip((x, t), wanted, strict=True)]
            output = clock.network(*inputs, condition)
        ctx.clock, ctx.inputs, ctx.output = clock, inputs, output
        result = output.detach()
        clock.seconds += time.perf_counter() - start
        return result

    @staticmethod
    def backward(ctx, gradient):
        start = time.perf_counter()
        wanted = [tensor for tensor in ctx.inputs if tensor.requires_grad]
        found = iter(torch.autograd.grad(ctx.output, wanted, gradient))
        ctx.output = None
        gradients = [next(found) if tensor.requires_grad else None for tensor in ctx.inputs]
        ctx.clock.seconds += time.perf_counter() - start
        return None, None, *gradients


@pytest.mark.parametrize("batch", [2, thorough(8), thorough(24)])
def test_embedded_teacher(against, benchmark, batch):
    """An iteration with the embedded teacher, and its share of time outside the network's two passes."""
    teacher = load_demo_teacher()
    noise, target = stack(2, (batch, *teacher.sample_shape))
    labels = torch.arange(batch) % 10

    baselines = {"public code": public_iteration(*peers.noise_prediction(teacher, labels), noise, target)}
    function = our_iteration(teacher.schedule, teacher, noise, target, labels)
    against(function, baselines, subject="training, embedded teacher", size=tuple(noise.shape), steps=STEPS)
    teacher.predict = clock = Clock(teacher.predict)
    benchmark.extra_info["share_outside_network"] = share_outside(clock, function, ITERATIONS)
