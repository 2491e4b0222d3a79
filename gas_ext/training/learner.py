"""The state of a training, and one iteration of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from gas_ext._utils.noise import stacked_noise, take
from gas_ext.samples import SampleBatch
from gas_ext.solvers.generalized import GeneralizedSolver
from gas_ext.training.objective import Objective
from gas_ext.training.optimizers import load_optimizer_state, optimizer_state
from gas_ext.training.settings import TrainingConfig


class Learner:
    """A solver that is being trained: its optimizer, its running average, and for GAS its adversary.

    `losses` has the loss of each iteration so far, NaN where it was not finite. `rejected` counts iterations
    without a step because something was not finite, `in_a_row` those among them at the end.
    """

    def __init__(self, solver: GeneralizedSolver, objective: Objective, config: TrainingConfig) -> None:
        self.solver = solver
        self.objective = objective
        self.config = config
        self.optimizer = config.make_optimizer(solver)
        self.average = [parameter.detach().clone() for parameter in solver.parameters()]
        self.losses: list[float] = []
        self.rejected = self.in_a_row = 0
        self._learned = [parameter for parameter in solver.parameters() if parameter.requires_grad]

    @property
    def iteration(self) -> int:
        """Number of iterations made, which is also the number of the next one, counted from 0."""
        return len(self.losses)

    def step(self, batch: SampleBatch) -> dict[str, float]:
        """Make one iteration on this process's part of a batch, and return what is logged.

        In GAS the discriminator's step comes first, and the student's loss uses the updated discriminator.
        """
        self.seed_global_generators("iteration")
        parts = split_batch(batch, self.config.accumulation)
        numbers: dict[str, float] = {}
        finite = True
        if self.objective.adversary is not None:
            numbers, finite = self.objective.teach_discriminator(parts, self._fresh_noise(parts))
        losses, student_finite = self.objective.student_gradients(parts, self._learned)
        numbers = {**losses, **numbers}
        norm = get_total_norm([parameter.grad for parameter in self._learned if parameter.grad is not None])
        if self.config.clip is not None:
            clip_grads_with_norm_(self._learned, self.config.clip, norm)
        factor = self.config.rate_factor(self.iteration)
        if student_finite:
            for group in self.optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor
            self.optimizer.step()
        self._update_average()
        self.losses.append(numbers["loss"])
        finite = finite and student_finite
        self.rejected += not finite
        self.in_a_row = 0 if finite else self.in_a_row + 1
        return {**numbers, "gradient_norm": norm.item(), "rate_factor": factor}

    def _fresh_noise(self, parts: Sequence[SampleBatch]) -> list[Tensor]:
        """Draw the noise of the discriminator's fakes, part by part."""
        position = self.objective.processes.rank * sum(len(part.noise) for part in parts)
        drawn = []
        for part in parts:
            positions = range(position, position + len(part.noise))
            drawn.append(fresh_noise(self.config.seed, self.iteration, positions, part.noise))
            position = positions.stop
        return drawn

    def seed_global_generators(self, purpose: str) -> None:
        """Seed torch's global generators, e.g. for dropout, from seed, iteration and process."""
        rank = self.objective.processes.rank
        seed = derived_seed(self.config.seed, purpose, self.iteration, rank)
        if self.solver.time_offsets.is_cpu:
            # manual_seed would format a traceback for each GPU library that is not in use: 1.5 ms.
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def check(self) -> None:
        """Raise RuntimeError if too many iterations in a row were not finite."""
        if self.in_a_row >= self.config.max_rejected:
            raise RuntimeError(
                f"Loss or gradient was not finite in {self.in_a_row} iterations in a row; check the "
                "teacher's samples, or lower the learning rates."
            )

    @torch.no_grad()
    def _update_average(self) -> None:
        """Average the parameters; early on over all iterations so far, so that the start is forgotten."""
        ema = self.config.ema
        decay = min(ema, (self.iteration + 1) / (self.iteration + 10))
        for value, parameter in zip(self.average, self.solver.parameters(), strict=True):
            value.lerp_(parameter, 1 - decay if ema else 1.0)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next iterations depend on except data and settings."""
        adversary = self.objective.adversary
        names = [name for name, _ in self.solver.named_parameters()]
        return {
            "solver": {name: parameter.detach() for name, parameter in self.solver.named_parameters()},
            "average": dict(zip(names, self.average, strict=True)),
            "optimizer": optimizer_state(self.optimizer),
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "rejected": self.rejected,
            "in_a_row": self.in_a_row,
            "adversary": None if adversary is None else adversary.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume where `state_dict` was called, with the same settings."""
        names = [name for name, _ in self.solver.named_parameters()]
        assign(self.solver, [state["solver"][name] for name in names])
        for value, name in zip(self.average, names, strict=True):
            value.copy_(state["average"][name])
        load_optimizer_state(self.optimizer, state["optimizer"])
        self.losses = state["losses"].tolist()
        self.rejected, self.in_a_row = state["rejected"], state["in_a_row"]
        if self.objective.adversary is not None:
            self.objective.adversary.load_state_dict(state["adversary"])


@torch.no_grad()
def assign(solver: GeneralizedSolver, values: Sequence[Tensor]) -> None:
    """Overwrite a solver's parameters."""
    for parameter, value in zip(solver.parameters(), values, strict=True):
        parameter.copy_(value)


def split_batch(batch: SampleBatch, parts: int) -> list[SampleBatch]:
    """Split a batch into parts of nearly equal size; ValueError if it has fewer samples.

    Examples
    --------
    >>> batch = SampleBatch(torch.zeros(5, 2), torch.zeros(5, 2), None, None, None)
    >>> [len(part.noise) for part in split_batch(batch, 2)]
    [3, 2]
    """
    size = len(batch.noise)
    if parts > size:
        raise ValueError(
            f"A batch of {size} samples (per process) cannot be split into {parts} parts; lower accumulation."
        )
    if parts == 1:
        return [batch]
    indices = torch.arange(size).tensor_split(parts)
    return [take(batch, slice(int(index[0]), int(index[-1]) + 1)) for index in indices]


def derived_seed(*parts: int | str) -> int:
    """Return a 32-bit seed that is a hash of its parts.

    Examples
    --------
    >>> derived_seed(0, "noise", 17) == derived_seed(0, "noise", 17) != derived_seed(0, "noise", 18)
    True
    """
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big")


def fresh_noise(seed: int, iteration: int, positions: Sequence[int], like: Tensor) -> Tensor:
    """Draw noise for these positions of an iteration's whole batch, with shape, dtype and device of `like`.

    It depends on nothing else, so a resumed run and any number of processes draw the same noise.

    Examples
    --------
    >>> like = torch.empty(0, 2)
    >>> whole, part = fresh_noise(0, 5, range(4), like), fresh_noise(0, 5, range(2, 4), like)
    >>> torch.equal(whole[2:], part)
    True
    """
    seeds = [derived_seed(seed, "fresh noise", iteration, position) for position in positions]
    return stacked_noise(seeds, like.shape[1:], like.dtype, like.device)
