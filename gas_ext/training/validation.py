"""How far a solver is from the teacher on seeds that it is not trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from gas_ext.sampler import GASSampler
from gas_ext.training.data import RunData
from gas_ext.training.objective import Objective


@dataclass(frozen=True)
class Validation:
    """What `validate` found.

    Parameters
    ----------
    iteration : int
        Iterations that had been made.
    loss : float
        Mean distillation loss on the validation samples.
    l1 : float
        Mean absolute difference to the teacher's samples.
    rejected : int
        Iterations until then in which a step was left out because something was not finite.
    """

    iteration: int
    loss: float
    l1: float
    rejected: int = 0

    def better_than(self, other: Validation | None) -> bool:
        """Whether the loss is smaller; any number is better than none."""
        return other is None or self.loss < other.loss or math.isnan(other.loss)


@torch.no_grad()
def validate(
    sampler: GASSampler, objective: Objective, data: RunData, iteration: int = 0, rejected: int = 0
) -> Validation:
    """Sample the validation seeds, each process its share, and compare with the teacher's samples.

    Parameters
    ----------
    sampler : GASSampler
        Runs the solver that is judged.
    objective : Objective
        Loss, precision and processes.
    data : RunData
        The samples.
    iteration, rejected : int
        For the record.
    """
    sums = torch.zeros(2, dtype=torch.float64, device=data.device)
    for batch in data.validation_batches():
        samples = objective.sample(batch.noise, batch.condition, sampler)
        difference = (samples.double() - batch.target.double()).abs().mean()
        found = torch.stack([objective.distance(samples, batch).double(), difference])
        sums += found * (len(batch) / data.validation_samples)
    objective.processes.add([sums])
    loss, l1 = sums.tolist()
    return Validation(iteration, loss, l1, rejected)
