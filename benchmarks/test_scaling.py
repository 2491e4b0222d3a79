"""How the cost of a whole sample grows: with steps, order, batch, image size and processes."""

from __future__ import annotations

import math
import multiprocessing

import pytest
import torch
from cases import our_sample, our_training_solve, public_sample, public_training_solve, stack, thorough
from measuring import Repeated

ORDER = 3
SIZE = (64, 3, 32, 32)


def few(*values):
    """The values; a short run uses only the first."""
    return [values[0], *(thorough(value) for value in values[1:])]


def terms_of(steps, order):
    """Terms of each step: D_n, and the states and older data predictions that it uses."""
    return [2 * min(n + 1, order) for n in range(steps)]


def moved_bytes(size, steps, order):
    """Bytes that the updates of a solve read and write."""
    return sum(terms + 2 for terms in terms_of(steps, order)) * 4 * math.prod(size)


def floor_of(streams, size, steps, order):
    """The floor of the largest step, scaled to the bytes of the whole solve; None without a compiler."""
    if streams is None:
        return None
    like, terms = stack(1, size)[0], max(terms_of(steps, order))
    step = streams.floor(like, terms, 2)
    return Repeated(step.function, step.repeats * (terms + 2) * like.nbytes / moved_bytes(size, steps, order))


def solve(against, streams, axis, value, size=SIZE, steps=4, order=ORDER):
    order = min(order, steps)
    against(
        our_sample(size, steps, order),
        {"public code": public_sample(size, steps, order), "floor": floor_of(streams, size, steps, order)},
        subject="scaling",
        axis=axis,
        value=value,
        size=size,
        steps=steps,
        order=order,
        bytes=moved_bytes(size, steps, order),
    )


@pytest.mark.parametrize("steps", few(4, 2, 8, 16, 32))
def test_steps(against, streams, steps):
    solve(against, streams, "steps", steps, steps=steps)


@pytest.mark.parametrize("order", few(2, 1, 4, 8, 16))
def test_order(against, streams, order):
    solve(against, streams, "order", order, steps=16, order=order)


@pytest.mark.parametrize("batch", few(4, 1, 16, 64, 256, 1024))
def test_batch(against, streams, batch):
    solve(against, streams, "batch", batch, size=(batch, 3, 32, 32))


@pytest.mark.parametrize("width", few(16, 8, 32, 64, 128, 256))
def test_image_size(against, streams, width):
    solve(against, streams, "image size", width, size=(8, 3, width, width))


@pytest.mark.parametrize("steps", few(4, 2, 8, 16, 32))
def test_training_steps(against, steps):
    """Forward and backward through a solve of the highest order, whose network returns its input."""
    noise = stack(1, SIZE)[0]
    baselines = {"public code": public_training_solve(noise, steps)}
    function = our_training_solve(noise, steps)[1]
    against(
        function, baselines, subject="scaling", axis="steps of training", value=steps, size=SIZE, steps=steps
    )


def work(connection, batch):
    """Sample with the embedded teacher on one thread, once per request."""
    from gas_ext import GASSampler

    torch.set_num_threads(1)
    sampler = GASSampler.from_pretrained("demo")
    noise, labels = torch.randn(batch, 1, 32, 32), torch.arange(batch) % 10
    connection.send("ready")
    while connection.recv() == "sample":
        with torch.no_grad():
            sampler(noise, labels)
        connection.send("done")


@pytest.mark.parametrize("processes", few(2, 1))
def test_processes(against, processes):
    """Time of sixteen samples of the embedded teacher in each of several single-threaded processes."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(processes)]
    workers = [context.Process(target=work, args=(there, 16), daemon=True) for _, there in pipes]
    for worker in workers:
        worker.start()
    ours = [here for here, _ in pipes]
    for here in ours:
        assert here.recv() == "ready"

    def call():
        for here in ours:
            here.send("sample")
        for here in ours:
            here.recv()

    against(
        call, {}, subject="scaling", axis="processes", value=processes, per=processes, size=(16, 1, 32, 32)
    )
    for here, worker in zip(ours, workers, strict=True):
        here.send("stop")
        worker.join()
