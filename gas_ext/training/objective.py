"""What solver and discriminator minimize: GS and GAS (arXiv 2510.17699, section 3), part by part of a batch.

An iteration of GAS has the published order: first the discriminator makes a step, on fakes from fresh noise;
then the student's loss is computed with the discriminator that results, on the noise of the teacher's
samples. Sums over parts and processes are those of the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gas_ext._utils.modes import in_precision
from gas_ext._utils.processes import Processes
from gas_ext.sampler import GASSampler
from gas_ext.training.adversarial import Adversary, discriminator_loss
from gas_ext.training.batches import Batch
from gas_ext.training.losses import Loss

# Fields of a DiscriminatorLoss, and what the logs call their means.
_PARTS = {
    "total": "discriminator",
    "adversarial": "discriminator_adversarial",
    "r1": "r1",
    "r2": "r2",
    "real_logits": "real_logit",
    "fake_logits": "fake_logit",
}


class Found(NamedTuple):
    """Means over a whole batch, by name, and whether all that was found is finite."""

    numbers: dict[str, float]
    finite: bool


class Objective:
    """Losses of a whole batch and their gradients, from parts of it and over all processes.

    Parameters
    ----------
    sampler : GASSampler
        The student.
    distance : callable
        ``distance(samples, target) -> scalar``, a mean over the batch.
    adversary : Adversary, optional
        The discriminator and its optimizer, for GAS.
    unconditional_condition : optional
        As for `GASSampler`.
    decode : callable, optional
        Makes images of samples, where it is images that are compared.
    autocast : torch.dtype, optional
        Precision of the network.
    processes : Processes
        Those that share the batch.
    """

    def __init__(
        self,
        sampler: GASSampler,
        distance: Loss,
        *,
        adversary: Adversary | None = None,
        unconditional_condition: Any = None,
        decode: Callable[[Tensor], Tensor] | None = None,
        autocast: torch.dtype | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.sampler = sampler
        self.adversary = adversary
        self.processes = processes or Processes()
        self._distance = distance
        self._unconditional = unconditional_condition
        self._decode = decode
        self._autocast = autocast

    def sample(self, noise: Tensor, condition: Any, sampler: GASSampler | None = None) -> Tensor:
        """Solve, with the network in its precision."""
        with in_precision(noise.device, self._autocast):
            samples: Tensor = (sampler or self.sampler)(noise, condition, self._unconditional)
        return samples

    def distance(self, samples: Tensor, batch: Batch) -> Tensor:
        """Return the distillation loss, a scalar."""
        if batch.images is not None and self._decode is not None:
            return self._distance(self._decode(samples), batch.images)
        return self._distance(samples, batch.target)

    def teach_discriminator(self, parts: Sequence[Batch]) -> Found:
        """Make one step of the discriminator on fakes from fresh noise, unless its gradient is not finite."""
        adversary = self.adversary
        assert adversary is not None
        size = self._whole(parts)
        sums = torch.zeros(len(_PARTS), dtype=torch.float64, device=parts[0].noise.device)
        adversary.optimizer.zero_grad(set_to_none=True)
        for part in parts:
            assert part.fresh_noise is not None
            with torch.no_grad():
                fake = self._shown(self.sample(part.fresh_noise, part.condition), part)
                real = self._shown(part.target, part)
            found = discriminator_loss(
                adversary.discriminator,
                real,
                fake,
                part.labels,
                gamma=adversary.gamma,
                loss=adversary.loss,
            )
            torch.autograd.backward(found.total.mean() * (len(part) / size))
            sums += torch.stack([getattr(found, name).detach().double().sum() for name in _PARTS])
        gradients = [p.grad for p in adversary.discriminator.parameters() if p.grad is not None]
        self.processes.add(gradients)
        self.processes.add([sums])
        finite = bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients)))
        if finite:
            adversary.optimizer.step()
        else:
            adversary.rejected += 1
        adversary.optimizer.zero_grad(set_to_none=True)
        return Found(dict(zip(_PARTS.values(), (sums / size).tolist(), strict=True)), finite)

    def student_gradients(self, parts: Sequence[Batch], wanted: Sequence[Tensor]) -> Found:
        """Put the gradient of the student's loss into ``grad`` of the wanted parameters."""
        size = self._whole(parts)
        gradients = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in wanted]
        sums = torch.zeros(3, dtype=torch.float64, device=parts[0].noise.device)
        for part in parts:
            samples = self.sample(part.noise, part.condition)
            distance = self.distance(samples, part)
            adversarial = self._adversarial(samples, part)
            total = distance if adversarial is None else distance + self._weight * adversarial
            share = len(part) / size
            scale = self._scale(samples)
            # Not backward(): a network inside a closure would gather gradients of its own.
            found = torch.autograd.grad(total * scale, wanted, allow_unused=True)
            for gradient, new in zip(gradients, found, strict=True):
                if new is not None:
                    gradient += new.double() * (share / scale)
            values = (total, distance, total.new_zeros(()) if adversarial is None else adversarial)
            sums += torch.stack([value.detach().double() for value in values]) * share
        self.processes.add([*gradients, sums])
        for parameter, gradient in zip(wanted, gradients, strict=True):
            parameter.grad = gradient.to(parameter.dtype)
        names = ("loss", "distance", "adversarial")[: 1 if self.adversary is None else 3]
        numbers = dict(zip(names, sums.tolist(), strict=False))
        finite = math.isfinite(numbers["loss"]) and all(bool(g.isfinite().all()) for g in gradients)
        return Found(numbers, finite)

    @property
    def _weight(self) -> float:
        return self.adversary.weight if self.adversary is not None else 0.0

    def _adversarial(self, samples: Tensor, part: Batch) -> Tensor | None:
        """Return the mean adversarial loss of the student, or None in GS."""
        if self.adversary is None:
            return None
        with torch.no_grad():
            real = self._shown(part.target, part)
        return self.adversary.student_loss(self._shown(samples, part), real, part.labels).mean()

    def _shown(self, samples: Tensor, part: Batch) -> Tensor:
        """Return what the discriminator is shown of samples, with the network in its precision."""
        assert self.adversary is not None
        with in_precision(samples.device, self._autocast):
            return self.adversary.show(samples, part.condition)

    def _scale(self, samples: Tensor) -> float:
        """Return what the loss is multiplied by before it is differentiated.

        The gradient of a mean over millions of numbers underflows in float16; that of their sum does not. A
        power of two, so that dividing by it rounds nothing.
        """
        if self._autocast is not torch.float16:
            return 1.0
        return 2.0 ** math.floor(math.log2(max(samples.numel(), 1)))

    def _whole(self, parts: Sequence[Batch]) -> int:
        """Return the size of the batch over all processes, each of which has an equal part."""
        return sum(map(len, parts)) * self.processes.count
