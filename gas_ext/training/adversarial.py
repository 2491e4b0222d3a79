"""The adversarial term of GAS: a discriminator that learns beside the solver, and one iteration of both.

With d = D(fake) - D(real) for a pair of samples, the relativistic losses (Jolicoeur-Martineau 2019, arXiv
1807.00734) are softplus(-d) for the student and softplus(d) for the discriminator, whose loss also has the
zero-centered gradient penalties R1 and R2 (Mescheder et al. 2018, Huang et al. 2024):

    gamma / 2 (R1 + R2),    R1 = |grad D(real)|^2,    R2 = |grad D(fake)|^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gas_ext.sampler import GASSampler
from gas_ext.training.discriminators import Discriminator
from gas_ext.training.losses import Loss


@dataclass(frozen=True)
class AdversarialLoss:
    """A pair of losses on logits, one value per sample.

    Parameters
    ----------
    student, discriminator : callable
        Map the logits (B,) of fakes and of real samples, in this order, to losses (B,).
    """

    student: Callable[[Tensor, Tensor], Tensor]
    discriminator: Callable[[Tensor, Tensor], Tensor]


ADVERSARIAL_LOSSES = {
    "relativistic": AdversarialLoss(
        student=lambda fake, real: F.softplus(real - fake),
        discriminator=lambda fake, real: F.softplus(fake - real),
    ),
    # The non-saturating loss of Goodfellow et al. (2014), for the paper's ablation.
    "gan": AdversarialLoss(
        student=lambda fake, real: F.softplus(-fake),
        discriminator=lambda fake, real: F.softplus(fake) + F.softplus(-real),
    ),
}


def get_adversarial_loss(loss: str | AdversarialLoss) -> AdversarialLoss:
    """Return an adversarial loss by its name ("relativistic", "gan"), or one as it is.

    Examples
    --------
    >>> loss = get_adversarial_loss("relativistic")
    >>> round(loss.student(torch.zeros(1), torch.zeros(1)).item(), 4)
    0.6931
    """
    if isinstance(loss, AdversarialLoss):
        return loss
    if loss not in ADVERSARIAL_LOSSES:
        raise ValueError(
            f"There is no adversarial loss {loss!r}; use one of {', '.join(ADVERSARIAL_LOSSES)}, or pass an "
            "AdversarialLoss."
        )
    return ADVERSARIAL_LOSSES[loss]


def gradient_penalty(logits: Tensor, samples: Tensor) -> Tensor:
    """Return the squared norm of each logit's gradient in its sample; it can be differentiated itself.

    Parameters
    ----------
    logits : Tensor
        (B,), each a function of its own sample alone.
    samples : Tensor
        (B, ...), requiring gradients, from which the logits were computed.

    Returns
    -------
    Tensor
        (B,).

    Examples
    --------
    >>> x = torch.tensor([[3.0, 4.0]], requires_grad=True)
    >>> gradient_penalty(0.5 * x.square().sum(1), x)
    tensor([25.], grad_fn=<SumBackward1>)
    """
    (gradient,) = torch.autograd.grad(logits.sum(), samples, create_graph=True)
    return gradient.square().flatten(1).sum(1)


@dataclass(frozen=True)
class DiscriminatorLoss:
    """The discriminator's loss and its parts, one value per sample.

    Parameters
    ----------
    total : Tensor
        adversarial + gamma / 2 (r1 + r2); its mean is minimized.
    adversarial : Tensor
        Without the penalties.
    real_logits, fake_logits : Tensor
        What the discriminator said.
    r1, r2 : Tensor
        Squared gradient norms at the real and the fake samples; 0 where gamma is 0.
    """

    total: Tensor
    adversarial: Tensor
    real_logits: Tensor
    fake_logits: Tensor
    r1: Tensor
    r2: Tensor

    def detach(self) -> DiscriminatorLoss:
        """Return the same numbers without their graph."""
        return DiscriminatorLoss(**{name: value.detach() for name, value in vars(self).items()})


def discriminator_loss(
    discriminator: Callable[..., Tensor],
    real: Tensor,
    fake: Tensor,
    labels: Tensor | None = None,
    *,
    gamma: float = 0.2,
    loss: str | AdversarialLoss = "relativistic",
) -> DiscriminatorLoss:
    """Return what the discriminator minimizes; gradients reach its parameters, not the samples' makers.

    Parameters
    ----------
    discriminator : Discriminator or callable
        discriminator(samples, labels) -> logits (B,).
    real, fake : Tensor
        (B, ...): the teacher's samples and the student's.
    labels : Tensor, optional
        int64 (B,), for a conditional discriminator.
    gamma : float
        Weight of the penalties, at least 0; without them (0) nothing is differentiated twice.
    loss : str or AdversarialLoss
        "relativistic" or "gan".

    Raises
    ------
    ValueError
        If the samples differ in shape.

    Examples
    --------
    >>> from gas_ext.training.discriminators import build_discriminator
    >>> discriminator = build_discriminator("convolution", (2, 16), width=4)
    >>> parts = discriminator_loss(discriminator, torch.randn(3, 2, 16), torch.randn(3, 2, 16))
    >>> torch.allclose(parts.total, parts.adversarial + 0.1 * (parts.r1 + parts.r2))
    True
    """
    if real.shape != fake.shape:
        raise ValueError(
            f"Real samples have shape {tuple(real.shape)} and fakes {tuple(fake.shape)}; expected one shape."
        )
    pair = get_adversarial_loss(loss)
    real, fake = (samples.detach().requires_grad_(gamma > 0) for samples in (real, fake))
    real_logits, fake_logits = discriminator(real, labels), discriminator(fake, labels)
    adversarial = pair.discriminator(fake_logits, real_logits)
    if gamma == 0:
        none = torch.zeros_like(adversarial)
        return DiscriminatorLoss(adversarial, adversarial, real_logits, fake_logits, none, none)
    r1, r2 = gradient_penalty(real_logits, real), gradient_penalty(fake_logits, fake)
    total = adversarial + 0.5 * gamma * (r1 + r2)
    return DiscriminatorLoss(total, adversarial, real_logits, fake_logits, r1, r2)


class Adversary:
    """A discriminator with its optimizer: the half of GAS that learns beside the solver.

    Parameters
    ----------
    discriminator : Discriminator
        Trained in place.
    rate : float
        Learning rate of Adam.
    betas : (float, float)
        Decays of Adam's moments.
    weight : float
        Weight of the adversarial term in the student's loss.
    gamma : float
        Weight of the gradient penalties.
    loss : str or AdversarialLoss
        "relativistic" or "gan".
    view : callable, optional
        view(samples, condition) -> what the discriminator is shown, such as
        `gas_ext.training.discriminators.TeacherView`; the samples themselves if not given. The
        penalties are on gradients in what is shown.

    Raises
    ------
    ValueError
        If a number is negative or not finite, or the loss unknown.

    Examples
    --------
    >>> from gas_ext.training.discriminators import build_discriminator
    >>> adversary = Adversary(build_discriminator("convolution", (2, 16), seed=0, width=4), rate=1e-2)
    >>> real, fake = torch.ones(4, 2, 16), -torch.ones(4, 2, 16)
    >>> for _ in range(20):
    ...     parts = adversary.update(real, fake)
    >>> bool((parts.real_logits > parts.fake_logits).all())
    True
    """

    def __init__(
        self,
        discriminator: Discriminator,
        *,
        rate: float = 1e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        weight: float = 1.0,
        gamma: float = 0.2,
        loss: str | AdversarialLoss = "relativistic",
        view: Callable[[Tensor, Any], Tensor] | None = None,
    ) -> None:
        for name, value in (("rate", rate), ("weight", weight), ("gamma", gamma)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value}; expected a finite number of at least 0.")
        self.discriminator = discriminator
        self.view = view
        self.weight, self.gamma, self.loss = weight, gamma, get_adversarial_loss(loss)
        self.optimizer = torch.optim.Adam(discriminator.parameters(), lr=rate, betas=betas)
        self.rejected = 0  # updates left out because a gradient was not finite

    def show(self, samples: Tensor, condition: Any = None) -> Tensor:
        """Return what the discriminator is shown of samples with these conditions."""
        return samples if self.view is None else self.view(samples, condition)

    def update(self, real: Tensor, fake: Tensor, labels: Tensor | None = None) -> DiscriminatorLoss:
        """Make one step of the discriminator on samples that get no gradient; return the loss before it.

        A step whose gradient is not finite is left out and counted in `rejected`: fakes of a solver that
        diverges must not spoil the discriminator for good.

        Parameters
        ----------
        real, fake : Tensor
            (B, ...): what is shown of the teacher's samples and of the student's.
        labels : Tensor, optional
            int64 (B,), for a conditional discriminator.
        """
        with torch.enable_grad():
            parts = discriminator_loss(
                self.discriminator, real, fake, labels, gamma=self.gamma, loss=self.loss
            )
            self.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(parts.total.mean())
        norm = torch.nn.utils.get_total_norm(
            [p.grad for p in self.discriminator.parameters() if p.grad is not None]
        )
        if bool(torch.isfinite(norm)):
            self.optimizer.step()
        else:
            self.rejected += 1
        self.optimizer.zero_grad(set_to_none=True)
        return parts.detach()

    def student_loss(self, fake: Tensor, real: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the student's adversarial loss per sample (B,), not yet weighted.

        Gradients reach `fake` only: the discriminator's parameters stay out of the graph.

        Parameters
        ----------
        fake, real : Tensor
            (B, ...): what is shown of the student's samples, and of the teacher's from the same noise.
        labels : Tensor, optional
            int64 (B,), for a conditional discriminator.
        """
        with frozen(self.discriminator):
            real_logits = self.discriminator(real.detach(), labels)
            return self.loss.student(self.discriminator(fake, labels), real_logits)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs: discriminator, optimizer, and count of rejections."""
        return {
            "discriminator": self.discriminator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rejected": self.rejected,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was called, for a discriminator of the same shape."""
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rejected = state["rejected"]


@dataclass(frozen=True)
class GASLoss:
    """What one iteration found.

    Parameters
    ----------
    total : Tensor
        Scalar with a graph: distance + weight * adversarial.
    distance : Tensor
        Scalar, the distillation loss; no graph.
    adversarial : Tensor
        (B,), the student's adversarial loss; no graph.
    discriminator : DiscriminatorLoss
        The discriminator's, before its step; no graph.
    samples : Tensor
        The student's samples; no graph.
    """

    total: Tensor
    distance: Tensor
    adversarial: Tensor
    discriminator: DiscriminatorLoss
    samples: Tensor


def gas_iteration(
    sampler: GASSampler,
    adversary: Adversary,
    distance: Loss,
    noise: Tensor,
    fresh_noise: Tensor,
    target: Tensor,
    condition: Any = None,
    unconditional_condition: Any = None,
    *,
    labels: Tensor | None = None,
) -> GASLoss:
    """Make one iteration of GAS in the published order, up to the student's own step.

    First the discriminator makes a step, on fakes from fresh noise; then the student's loss is computed with
    the discriminator that results, on the noise that the teacher's samples belong to.

    Parameters
    ----------
    sampler : GASSampler
        The student.
    adversary : Adversary
        Discriminator and optimizer; makes one step.
    distance : callable
        distance(samples, target) -> scalar, the distillation loss.
    noise, target : Tensor
        (B, ...): noise and the teacher's samples from it.
    fresh_noise : Tensor
        (B, ...): other noise, for the discriminator's fakes.
    condition, unconditional_condition : optional
        As for the sampler; the fresh fakes have the same condition.
    labels : Tensor, optional
        int64 (B,), for a conditional discriminator.

    Returns
    -------
    GASLoss
        Back-propagate its ``total``, or differentiate it with `torch.autograd.grad`.

    Examples
    --------
    >>> from gas_ext import GeneralizedSolver, NoiseSchedule
    >>> from gas_ext.training.discriminators import build_discriminator
    >>> from gas_ext.training.losses import l1_loss
    >>> solver = GeneralizedSolver(NoiseSchedule.vp_linear(), steps=2)
    >>> sampler = GASSampler(solver, lambda x, t, condition: torch.tanh(x))
    >>> adversary = Adversary(build_discriminator("convolution", (1, 16), width=4))
    >>> noise, fresh_noise = torch.randn(2, 3, 1, 16)
    >>> found = gas_iteration(sampler, adversary, l1_loss, noise, fresh_noise, noise.tanh())
    >>> found.total.backward()
    >>> solver.data_corrections.grad.abs().sum() > 0
    tensor(True)
    """
    with torch.no_grad():
        fake = adversary.show(sampler(fresh_noise, condition, unconditional_condition), condition)
        real = adversary.show(target, condition)
    # Before the student's solve, whose graph is the larger: the two never stand in memory together.
    discriminator = adversary.update(real, fake, labels)
    samples = sampler(noise, condition, unconditional_condition)
    distilled = distance(samples, target)
    adversarial = adversary.student_loss(adversary.show(samples, condition), real, labels)
    total = distilled + adversary.weight * adversarial.mean()
    return GASLoss(total, distilled.detach(), adversarial.detach(), discriminator, samples.detach())


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Keep a module's parameters out of graphs that are built inside the context.

    Examples
    --------
    >>> layer = nn.Linear(2, 1)
    >>> with frozen(layer):
    ...     layer(torch.zeros(1, 2)).requires_grad
    False
    """
    wanted = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
