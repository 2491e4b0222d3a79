"""Everything that changes while a solver is trained, and one iteration of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gas_ext.solvers.generalized import GeneralizedSolver
from gas_ext.training.batches import Batch, derived_seed
from gas_ext.training.objective import Objective
from gas_ext.training.optimizers import load_optimizer_state, optimizer_state
from gas_ext.training.settings import TrainingConfig


class Learner:
    """A solver that is being trained: its optimizer, its average, and for GAS its adversary.

    Parameters
    ----------
    solver : GeneralizedSolver
        Trained in place.
    objective : Objective
        What is minimized; its sampler runs this solver.
    config : TrainingConfig
        The settings.

    Attributes
    ----------
    losses : list of float
        Loss of each iteration so far, NaN where it was not finite.
    rejected, in_a_row : int
        Iterations in which a step was left out because something was not finite; those of them at the end.
    average : list of Tensor
        Running averages of the parameters.
    """

    def __init__(self, solver: GeneralizedSolver, objective: Objective, config: TrainingConfig) -> None:
        self.solver = solver
        self.objective = objective
        self.config = config
        self.optimizer = config.make_optimizer(solver)
        self.average = [parameter.detach().clone() for parameter in solver.parameters()]
        self.losses: list[float] = []
        self.rejected = self.in_a_row = 0
        self._wanted = [parameter for parameter in solver.parameters() if parameter.requires_grad]

    @property
    def iteration(self) -> int:
        """Number of iterations made, which is also the number of the next one, counted from 0."""
        return len(self.losses)

    def step(self, batch: Batch) -> dict[str, float]:
        """Make one iteration; in GAS the discriminator's step comes first, and the student sees the result.

        Parameters
        ----------
        batch : Batch
            This process's part, of one size in all processes.

        Returns
        -------
        dict of str to float
            What there is to log: losses (means over the whole batch), gradient norm, rate.

        Raises
        ------
        RuntimeError
            If ``config.max_rejected`` iterations in a row were not finite. The parameters are those of the
            last step that was.
        """
        self.seed_global_generators("iteration")
        parts = batch.split(self.config.accumulation)
        numbers: dict[str, float] = {}
        finite = True
        if self.objective.adversary is not None:
            found = self.objective.teach_discriminator(parts)
            numbers, finite = found.numbers, found.finite
        found = self.objective.student_gradients(parts, self._wanted)
        numbers = {**found.numbers, **numbers}
        limit = math.inf if self.config.clip is None else self.config.clip
        norm = torch.nn.utils.clip_grad_norm_(self.solver.parameters(), limit)
        factor = self.config.rate_factor(self.iteration)
        if found.finite:
            for group in self.optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor
            self.optimizer.step()
        self._update_average()
        self.losses.append(numbers["loss"])
        self._count(finite and found.finite)
        return {**numbers, "gradient_norm": norm.item(), "rate_factor": factor}

    def seed_global_generators(self, purpose: str) -> None:
        """Make dropout and the like follow from seed, iteration and process too."""
        rank = self.objective.processes.rank
        seed = derived_seed(self.config.seed, purpose, self.iteration, rank)
        if self.solver.time_offsets.is_cpu:
            # manual_seed would format a traceback for each GPU library that is not in use: 1.5 ms.
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def _count(self, finite: bool) -> None:
        self.rejected += not finite
        self.in_a_row = 0 if finite else self.in_a_row + 1

    def check(self) -> None:
        """Raise RuntimeError if too many iterations in a row were not finite."""
        if self.in_a_row >= self.config.max_rejected:
            raise RuntimeError(
                f"loss or gradient was not finite in {self.in_a_row} iterations in a row: check the "
                "teacher's samples, or lower the learning rates"
            )

    @torch.no_grad()
    def _update_average(self) -> None:
        """Average the parameters; early on over all iterations so far, so that the start is forgotten."""
        ema = self.config.ema
        decay = min(ema, (self.iteration + 1) / (self.iteration + 10))
        for value, parameter in zip(self.average, self.solver.parameters(), strict=True):
            value.lerp_(parameter, 1 - decay if ema else 1.0)

    @torch.no_grad()
    def average_into(self, solver: GeneralizedSolver) -> None:
        """Give a solver the averaged parameters."""
        assign(solver, self.average)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next iterations depend on, but data and settings."""
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
def assign(solver: GeneralizedSolver, values: list[Tensor]) -> None:
    """Give a solver other parameters."""
    for parameter, value in zip(solver.parameters(), values, strict=True):
        parameter.copy_(value)
