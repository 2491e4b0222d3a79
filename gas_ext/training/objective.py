"""What solver and discriminator minimize: GS and GAS (arXiv 2510.17699, section 3), part by part of a batch.

An iteration of GAS follows the published order: first the discriminator makes a step on fakes from fresh
noise; then the student's loss is computed with the updated discriminator, on the noise of the teacher's
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
from gas_ext.samples import SampleBatch
from gas_ext.training.adversarial import Adversary, DiscriminatorLoss, discriminator_loss
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


class Means(NamedTuple):
    """Means over a whole batch by name, and whether they and all gradients are finite."""

    numbers: dict[str, float]
    finite: bool


class Objective:
    """Losses of a whole batch and their gradients, from parts of it and over all processes.

    ``distance(samples, target)`` is a mean over the batch. With `decode`, decoded samples are compared with
    the batch's images. With `labels`, conditions are class labels that the discriminator gets too.
    """

    def __init__(
        self,
        sampler: GASSampler,
        distance: Loss,
        *,
        adversary: Adversary | None = None,
        labels: bool = False,
        unconditional_condition: Any = None,
        decode: Callable[[Tensor], Tensor] | None = None,
        autocast: torch.dtype | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.sampler = sampler
        self.adversary = adversary
        self.processes = processes or Processes()
        self._distance = distance
        self._labels = labels
        self._unconditional = unconditional_condition
        self._decode = decode
        self._autocast = autocast

    def sample(self, noise: Tensor, condition: Any, sampler: GASSampler | None = None) -> Tensor:
        """Solve, with the network in its precision."""
        with in_precision(noise.device, self._autocast):
            samples: Tensor = (sampler or self.sampler)(noise, condition, self._unconditional)
        return samples

    def distance(self, samples: Tensor, batch: SampleBatch) -> Tensor:
        """Return the distillation loss, a scalar."""
        if batch.images is not None and self._decode is not None:
            return self._distance(self._decode(samples), batch.images)
        return self._distance(samples, batch.samples)

    def teach_discriminator(self, parts: Sequence[SampleBatch], fresh_noise: Sequence[Tensor]) -> Means:
        """Make one step of the discriminator on fakes from this noise, unless its gradient is not finite."""
        adversary = self.adversary
        assert adversary is not None
        size = self._whole(parts)
        sums = torch.zeros(len(_PARTS), dtype=torch.float64, device=parts[0].noise.device)
        adversary.optimizer.zero_grad(set_to_none=True)
        for part, noise in zip(parts, fresh_noise, strict=True):
            loss = self._discriminator_loss(adversary, part, noise)
            torch.autograd.backward(loss.total.mean() * (len(part.noise) / size))
            sums += torch.stack([getattr(loss, name).detach().double().sum() for name in _PARTS])
        gradients = [p.grad for p in adversary.discriminator.parameters() if p.grad is not None]
        self.processes.add(gradients)
        self.processes.add([sums])
        finite = bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients)))
        if finite:
            adversary.optimizer.step()
        else:
            adversary.rejected += 1
        adversary.optimizer.zero_grad(set_to_none=True)
        return Means(dict(zip(_PARTS.values(), (sums / size).tolist(), strict=True)), finite)

    def _discriminator_loss(
        self, adversary: Adversary, part: SampleBatch, noise: Tensor
    ) -> DiscriminatorLoss:
        with torch.no_grad():
            fake = self._shown(self.sample(noise, part.condition), part)
            real = self._shown(part.samples, part)
        return discriminator_loss(
            adversary.discriminator,
            real,
            fake,
            self._labels_of(part),
            gamma=adversary.gamma,
            loss=adversary.loss,
        )

    def student_gradients(self, parts: Sequence[SampleBatch], parameters: Sequence[Tensor]) -> Means:
        """Put the gradient of the student's loss into ``grad`` of these parameters."""
        size = self._whole(parts)
        gradients = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in parameters]
        sums = torch.zeros(3, dtype=torch.float64, device=parts[0].noise.device)
        for part in parts:
            samples = self.sample(part.noise, part.condition)
            distance = self.distance(samples, part)
            total, adversarial = distance, distance.new_zeros(())
            if self.adversary is not None:
                adversarial = self._adversarial(self.adversary, samples, part)
                total = distance + self.adversary.weight * adversarial
            share = len(part.noise) / size
            scale = self._scale(samples)
            # Not backward(): the parameters of a network inside a closure would accumulate gradients.
            found = torch.autograd.grad(total * scale, parameters, allow_unused=True)
            for gradient, new in zip(gradients, found, strict=True):
                if new is not None:
                    gradient += new.double() * (share / scale)
            sums += torch.stack([v.detach().double() for v in (total, distance, adversarial)]) * share
        self.processes.add([*gradients, sums])
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.to(parameter.dtype)
        names = ("loss", "distance", "adversarial")[: 1 if self.adversary is None else 3]
        numbers = dict(zip(names, sums.tolist(), strict=False))
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        return Means(numbers, math.isfinite(numbers["loss"]) and bool(flat.isfinite().all()))

    def _adversarial(self, adversary: Adversary, samples: Tensor, part: SampleBatch) -> Tensor:
        """Return the mean adversarial loss of the student."""
        with torch.no_grad():
            real = self._shown(part.samples, part)
        return adversary.student_loss(self._shown(samples, part), real, self._labels_of(part)).mean()

    def _shown(self, samples: Tensor, part: SampleBatch) -> Tensor:
        """Return the discriminator's input for samples, with the network in its precision."""
        assert self.adversary is not None
        with in_precision(samples.device, self._autocast):
            return self.adversary.show(samples, part.condition)

    def _labels_of(self, part: SampleBatch) -> Any:
        return part.condition if self._labels else None

    def _scale(self, samples: Tensor) -> float:
        """Return the factor on the loss before it is differentiated.

        The gradient of a mean over millions of numbers underflows in float16; that of their sum does not. A
        power of two, so that dividing by it rounds nothing.
        """
        if self._autocast is not torch.float16:
            return 1.0
        return 2.0 ** math.floor(math.log2(max(samples.numel(), 1)))

    def _whole(self, parts: Sequence[SampleBatch]) -> int:
        """Return the size of the batch over all processes, each of which has an equal part."""
        return sum(len(part.noise) for part in parts) * self.processes.count
