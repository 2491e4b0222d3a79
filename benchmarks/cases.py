"""Sizes, dtypes, tensors and solvers of the benchmarks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import peers
import pytest
import torch
from measuring import last_level_cache
from torch import Tensor

from gas_ext import GASSampler, GeneralizedSolver, NoiseSchedule

Size = tuple[int, ...]

SMALL: Size = (1, 3, 32, 32)
TRAINING: Size = (24, 3, 32, 32)  # the batch of GS on CIFAR-10
MIDDLE: Size = (64, 3, 32, 32)
LARGE: Size = (64, 3, 64, 64)
HUGE: Size = (512, 3, 64, 64)  # far beyond any last-level cache
SIZES = (SMALL, MIDDLE, LARGE, HUGE)  # of the update alone
TERMS = (2, 3, 8, 20)  # x_{n+1} is a sum of so many tensors: D_n and the history; order 4 has 8
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def size_name(size: Size) -> str:
    """A size as in test ids."""
    return "x".join(map(str, size))


def case(*values: Any) -> Any:
    """Parameters of a case with a readable name."""
    return pytest.param(*values, id=_name(values))


def thorough(*values: Any) -> Any:
    """Parameters of a case that short runs skip (conftest.py)."""
    return pytest.param(*values, id=_name(values), marks=pytest.mark.thorough)


def _name(values: Any) -> str:
    return "-".join(size_name(value) if isinstance(value, tuple) else str(value) for value in values)


def generator(seed: int = 0) -> torch.Generator:
    """A new generator, so that benchmarks do not depend on each other."""
    return torch.Generator().manual_seed(seed)


def stack(count: int, size: Size, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """A number of random tensors."""
    source = generator()
    return [torch.randn(size, generator=source).to(dtype) for _ in range(count)]


def caches(moved: int) -> tuple[str, ...]:
    """Cache states in which an operation that moves so many bytes is measured.

    "warm": the same tensors in each call; "cold": other tensors, so that everything comes from DRAM. If the
    tensors of one call fill the cache, they are always cold.
    """
    return ("cold",) if moved > 2 * last_level_cache() else ("warm", "cold")


def groups_needed(moved: int) -> int:
    """Number of groups of tensors that keep the cache cold when visited in turn."""
    return -(-4 * last_level_cache() // moved)


def free_network(size: Size) -> Callable[..., Tensor]:
    """A network that costs nothing: the same output for all inputs."""
    output = torch.randn(size, generator=generator(1))
    return lambda x, t, condition=None: output


def sampler(size: Size, steps: int, order: int | None = None) -> GASSampler:
    """An untrained solver of the highest order with a network that costs nothing."""
    solver = GeneralizedSolver(NoiseSchedule.vp_linear(), steps, order=order)
    return GASSampler(solver, free_network(size), prediction_type="epsilon")


def without_gradient(function: Callable[..., object], *arguments: Any) -> Callable[[], None]:
    """The call under `torch.no_grad`."""

    def call() -> None:
        with torch.no_grad():
            function(*arguments)

    return call


def share_outside(clock: Any, function: Callable[[], object], repeats: int) -> float:
    """Median share of a call's time outside a network whose seconds a clock counts."""
    shares = []
    for _ in range(repeats):
        clock.seconds, start = 0.0, time.perf_counter()
        function()
        shares.append(1.0 - clock.seconds / (time.perf_counter() - start))
    return statistics.median(shares)


def public_sample(size: Size, steps: int, order: int | None = None) -> Callable[[], None]:
    """The same solve in the public code, on its cheapest schedule."""
    parameters = peers.Parameters.untrained(steps, order or steps)
    noise, network, log_alpha = stack(1, size)[0], free_network(size), peers.linear_log_alpha()
    return without_gradient(peers.unfused_solve, log_alpha, parameters, network, noise)


def diffusers_sample(
    name: str, size: Size, steps: int, times_set_once: bool = False
) -> Callable[[], None] | None:
    """All `step()` calls of a solve, with times set in each call or once; None without diffusers."""
    try:
        scheduler = peers.diffusers_scheduler(name)
    except ImportError:
        return None
    scheduler.set_timesteps(steps)
    output, noise = free_network(size)(None, None), stack(1, size)[0]

    def call() -> None:
        if times_set_once:
            peers.restart(scheduler)
        else:
            scheduler.set_timesteps(steps)
        peers.diffusers_solve(scheduler, output, noise)

    return without_gradient(call)


def our_sample(size: Size, steps: int, order: int | None = None) -> Callable[[], None]:
    """One sample from noise, including its coefficients."""
    return without_gradient(sampler(size, steps, order), stack(1, size)[0])


def our_training_solve(noise: Tensor, steps: int) -> tuple[Callable[[], Tensor], Callable[[], None]]:
    """A solve with its graph, and the same with the backward pass; the network returns its input."""
    model = GASSampler(GeneralizedSolver(NoiseSchedule.vp_linear(), steps), lambda x, t, condition: x)
    seed = torch.ones_like(noise)

    def forward() -> Tensor:
        state: Tensor = model(noise)
        return state

    return forward, lambda: torch.autograd.backward(forward(), seed)


def public_training_solve(noise: Tensor, steps: int) -> Callable[[], None]:
    """The same in the public code, where the network's output is a noise prediction."""
    parameters = peers.Parameters.untrained(steps, steps).requires_grad_()
    seed = torch.ones_like(noise)

    def call() -> None:
        states, _ = peers.unfused_solve(peers.linear_log_alpha(), parameters, lambda x, t: x, noise)
        torch.autograd.backward(states[-1], seed)

    return call
