"""The update alone, forward and backward, from one small image to far beyond the cache, 2 to 20 terms."""

from __future__ import annotations

import itertools

import peers
import pytest
import torch
from cases import (
    DTYPES,
    HUGE,
    LARGE,
    SIZES,
    SMALL,
    TERMS,
    caches,
    case,
    groups_needed,
    stack,
    thorough,
    without_gradient,
)

from gas_ext.ops import fused_update, fused_update_reference

# The part of the grid that short runs measure.
QUICK = {(SMALL, 8, "float32"), (LARGE, 8, "float32"), (SMALL, 20, "bfloat16")}
GRID = [(size, terms, dtype) for size in SIZES for terms in TERMS for dtype in DTYPES]


def chosen(grid):
    """The grid as parameters; only QUICK in short runs."""
    return [case(*values) if values[:3] in QUICK else thorough(*values) for values in grid]


COMPILED_IN_SHORT_RUNS = {(SMALL, 8, "float32")}


def inputs(size, terms, dtype, requires_grad=False, coefficient_grad=False):
    """History, output and coefficient row of one step."""
    *history, output = stack(terms, size, DTYPES[dtype])
    row = torch.full((5 + len(history),), 0.3, dtype=torch.float64)
    for tensor in (*history, output):
        tensor.requires_grad_(requires_grad)
    return history, output, row.requires_grad_(coefficient_grad)


class Unfused:
    """One step in the middle of a solve in the public code, on the same tensors."""

    def __init__(self, history, output, coefficient_grad=False):
        terms = len(history) + 1
        self.order = (terms + 1) // 2  # number of data predictions; the other terms are states
        self.history, self.output = history, output
        dtype = output.dtype
        self.times = torch.tensor([0.5, 0.6, 0.7, 0.8][: min(self.order, 3) + 1], dtype=dtype)
        self.corrections = torch.full((2, self.order), 0.1, dtype=dtype)
        self.numbers = (self.times, self.corrections)
        for tensor in self.numbers:
            tensor.requires_grad_(coefficient_grad)

    def __call__(self):
        states = self.history[: len(self.history) - self.order + 1]
        data = self.history[len(states) :]
        c, a = self.corrections
        return peers.unfused_update(
            peers.linear_log_alpha(), self.times.unbind(), states, data, self.output, c.unbind(), a.unbind()
        )


def compiled_for(request, size, terms, dtype):
    """Whether torch also compiles this case, which takes seconds."""
    full = float(request.config.getoption("benchmark_max_time")) >= 0.5
    return full or (size, terms, dtype) in COMPILED_IN_SHORT_RUNS


@pytest.mark.parametrize(("size", "terms", "dtype"), chosen(GRID))
def test_forward(against, request, size, terms, dtype):
    """All results in fresh memory."""
    history, output, row = inputs(size, terms, dtype)
    baselines = {"unfused": without_gradient(Unfused(history, output))}
    if compiled_for(request, size, terms, dtype):
        compiled = torch.compile(fused_update_reference, dynamic=False)
        baselines["torch.compile"] = without_gradient(compiled, history, output, row)
    if terms == 8 and dtype == "float32" and compiled_for(request, size, terms, dtype):
        baselines["unfused, torch.compile"] = without_gradient(
            torch.compile(Unfused(history, output).__call__, dynamic=False)
        )
    function = without_gradient(fused_update, history, output, row)
    against(function, baselines, subject="forward", size=size, terms=terms, dtype=dtype)


def moved_bytes(size, terms, dtype):
    """Bytes that a forward update reads (the terms except D_n, the output) and writes (D_n, x_{n+1})."""
    return (terms + 2) * torch.Size(size).numel() * DTYPES[dtype].itemsize


FLOOR_GRID = [(*values, cache) for values in GRID for cache in caches(moved_bytes(*values))]


@pytest.mark.parametrize(("size", "terms", "dtype", "cache"), chosen(FLOOR_GRID))
def test_forward_floor(against, streams, size, terms, dtype, cache):
    """Results in given memory, like those of the floor."""
    moved = moved_bytes(size, terms, dtype)
    count = groups_needed(moved) if cache == "cold" else 1
    made = [(stack(terms, size, DTYPES[dtype]), stack(2, size, DTYPES[dtype])) for _ in range(count)]
    output = made[0][0][-1]
    row = torch.full((4 + terms,), 0.3, dtype=torch.float64)
    turn = itertools.cycle(made)

    def step():
        read, written = next(turn)
        fused_update(read[:-1], read[-1], row, out=written)

    against(
        without_gradient(step),
        {"floor": streams and streams.floor(output, terms, 2, count)},
        subject="forward against the floor",
        size=size,
        terms=terms,
        dtype=dtype,
        cache=cache,
        bytes=moved,
    )


BACKWARD_GRID = [(*values, wanted) for values in GRID if values[1] > 2 for wanted in ("all", "data")]


@pytest.mark.parametrize(("size", "terms", "dtype", "gradients"), chosen(BACKWARD_GRID))
def test_backward(against, request, streams, size, terms, dtype, gradients):
    """Backward alone, to all tensors and coefficients, or only to the tensors."""
    everything = gradients == "all"
    history, output, row = inputs(size, terms, dtype, True, everything)
    seeds = stack(2, size, DTYPES[dtype])

    def backward(results, wanted):
        wanted = [tensor for tensor in wanted if tensor.requires_grad]
        results = results[:2]
        return lambda: torch.autograd.grad(results, wanted, grad_outputs=seeds, retain_graph=True)

    unfused = Unfused(history, output, everything)
    baselines = {"unfused": backward(unfused(), (*history, output, *unfused.numbers))}
    if compiled_for(request, size, terms, dtype) and dtype == "float32":
        compiled = torch.compile(fused_update_reference, dynamic=False)
        baselines["torch.compile"] = backward(compiled(history, output, row), (*history, output, row))
    if streams is not None:  # read: both seeds, and for coefficients history and output; written: gradients
        baselines["floor"] = streams.floor(output.detach(), 2 + terms * everything, terms)
    count = terms + 2 + (terms if everything else 0)
    against(
        backward(fused_update(history, output, row), (*history, output, row)),
        baselines,
        subject="backward",
        size=size,
        terms=terms,
        dtype=dtype,
        gradients=gradients,
        bytes=count * output.nbytes,
    )


@pytest.mark.parametrize("size", [case(LARGE), thorough(HUGE)])
@pytest.mark.usefixtures("memory_given_back")
def test_fresh_memory(against, size):
    """Cost of results in memory fresh from the system."""
    history, output, row = inputs(size, 8, "float32")
    out = tuple(stack(2, size))

    def given():
        fused_update(history, output, row, out=out)

    against(
        without_gradient(fused_update, history, output, row),
        {"in given memory": without_gradient(given)},
        subject="forward into fresh memory",
        size=size,
        terms=8,
        dtype="float32",
    )
