"""The adversarial term of GAS: its losses, and the discriminator that is trained with the solver.

With d = D(fake) - D(real) for a pair of samples, the relativistic losses (Jolicoeur-Martineau 2019, arXiv
1807.00734) are softplus(-d) for the student and softplus(d) for the discriminator, whose loss also has the
zero-centered gradient penalties R1 and R2 (Mescheder et al. 2018, Huang et al. 2024):

    gamma / 2 (R1 + R2),    R1 = |grad D(real)|^2,    R2 = |grad D(fake)|^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gas_ext._utils.modes import frozen
from gas_ext.configs import Config
from gas_ext.configs.training import Adversarial
from gas_ext.denoisers import Denoiser
from gas_ext.teachers.sources import weights_folder
from gas_ext.training.discriminators import (
    Discriminator,
    TeacherView,
    build_discriminator,
    load_discriminator,
    load_r3gan_snapshot,
)
from gas_ext.training.optimizers import load_optimizer_state, optimizer_state

_SNAPSHOTS = ("r3gan-cifar10", "r3gan-ffhq64")


@dataclass(frozen=True)
class AdversarialLoss:
    """A pair of losses, each a function of the logits (B,) of fakes and of real samples with values (B,)."""

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
    """Return an adversarial loss by its name ("relativistic", "gan"), or an AdversarialLoss unchanged."""
    if isinstance(loss, AdversarialLoss):
        return loss
    if loss not in ADVERSARIAL_LOSSES:
        raise ValueError(
            f"There is no adversarial loss {loss!r}; use one of {', '.join(ADVERSARIAL_LOSSES)}, or pass an "
            "AdversarialLoss."
        )
    return ADVERSARIAL_LOSSES[loss]


def gradient_penalty(logits: Tensor, samples: Tensor) -> Tensor:
    """Return the squared gradient norm (B,) of each logit in its own sample; it is differentiable itself.

    The logits (B,) were computed from the samples (B, ...), which require gradients.

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
        The loss without the penalties.
    real_logits, fake_logits : Tensor
        Logits of the discriminator.
    r1, r2 : Tensor
        Squared gradient norms at the real and the fake samples; 0 where gamma is 0.
    """

    total: Tensor
    adversarial: Tensor
    real_logits: Tensor
    fake_logits: Tensor
    r1: Tensor
    r2: Tensor


def discriminator_loss(
    discriminator: Callable[..., Tensor],
    real: Tensor,
    fake: Tensor,
    labels: Tensor | None = None,
    *,
    gamma: float = 0.2,
    loss: str | AdversarialLoss = "relativistic",
) -> DiscriminatorLoss:
    """Return the discriminator's loss; gradients reach its parameters, but not the samples.

    Parameters
    ----------
    discriminator : Discriminator or callable
        ``discriminator(samples, labels)`` returns logits (B,).
    real, fake : Tensor
        (B, ...): the teacher's samples and the student's.
    labels : Tensor, optional
        int64 (B,), for a conditional discriminator.
    gamma : float
        Weight of the penalties, at least 0; 0 avoids second derivatives.
    loss : str or AdversarialLoss
        "relativistic" or "gan".

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
    """A discriminator with its optimizer, which is trained with the solver in GAS.

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
        ``view(samples, condition)`` returns the discriminator's input, on whose gradients the penalties
        are; see `gas_ext.training.discriminators.TeacherView`. Default: the samples themselves.

    Raises
    ------
    ValueError
        If a number is negative or not finite, or the loss unknown.

    Examples
    --------
    >>> from gas_ext.training.discriminators import build_discriminator
    >>> adversary = Adversary(build_discriminator("convolution", (2, 16), seed=0, width=4), rate=1e-2)
    >>> adversary.student_loss(-torch.ones(4, 2, 16), torch.ones(4, 2, 16)).shape
    torch.Size([4])
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
        self.rejected = 0  # steps skipped because a gradient was not finite

    def show(self, samples: Tensor, condition: Any = None) -> Tensor:
        """Return the discriminator's input for samples with these conditions."""
        return samples if self.view is None else self.view(samples, condition)

    def student_loss(self, fake: Tensor, real: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the student's adversarial loss per sample (B,), not yet weighted.

        `fake` and `real` are the discriminator's input for the student's samples and for the teacher's from
        the same noise, `labels` as for `discriminator_loss`. Gradients reach `fake` only.
        """
        with frozen(self.discriminator):
            real_logits = self.discriminator(real.detach(), labels)
            return self.loss.student(self.discriminator(fake, labels), real_logits)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {
            "discriminator": self.discriminator.state_dict(),
            "optimizer": optimizer_state(self.optimizer),
            "rejected": self.rejected,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume where `state_dict` was called, for a discriminator of the same shape."""
        self.discriminator.load_state_dict(state["discriminator"])
        load_optimizer_state(self.optimizer, state["optimizer"])
        self.rejected = state["rejected"]


def make_adversary(config: Config, denoiser: Denoiser) -> Adversary:
    """Build or load the discriminator of a config, on the network's device.

    ValueError if the config has no adversarial section, a file is missing or damaged, or the discriminator
    takes another shape.
    """
    section = config.adversarial
    if section is None:
        raise ValueError(
            f"The config {config.name} has no adversarial section, which GAS needs: add one, e.g. with --set "
            "adversarial.discriminator=convolution --set adversarial.rate=1e-5 --set adversarial.weight=1 "
            "--set adversarial.gamma=0.2, or use --loss gs."
        )
    levels = section.noise_levels
    view = TeacherView(denoiser, levels, recompute=config.training.recompute) if levels else None
    shape = denoiser.sample_shape if view is None else view.sample_shape
    discriminator = _discriminator(section, shape, config.training.seed)
    if discriminator.sample_shape != shape:
        raise ValueError(
            f"The discriminator {section.discriminator} is for samples of shape "
            f"{discriminator.sample_shape}, but gets {shape} from {denoiser.name} with "
            f"adversarial.noise_levels={list(levels)}; use another discriminator, or the noise levels it was "
            "made for."
        )
    return Adversary(
        discriminator.to(denoiser.device),
        rate=section.rate,
        betas=section.betas,
        weight=section.weight,
        gamma=section.gamma,
        loss=section.loss,
        view=view,
    )


def takes_labels(discriminator: Discriminator, denoiser: Denoiser) -> bool:
    """Whether a discriminator gets the labels of its samples: if both have the same number of classes."""
    return bool(discriminator.num_classes) and discriminator.num_classes == denoiser.num_classes


def _discriminator(section: Adversarial, shape: tuple[int, ...], seed: int) -> Discriminator:
    name = section.discriminator
    if name in _SNAPSHOTS:
        return _snapshot(name)
    if name.endswith(".safetensors"):
        return load_discriminator(name)
    registered = "r3gan" if name == "r3gan-random" else name
    return build_discriminator(registered, shape, seed=seed, **section.settings)


def _snapshot(name: str) -> Discriminator:
    """Load a published discriminator, original or converted, from the weights folder."""
    folder = weights_folder()
    converted, published = folder / f"{name}.safetensors", folder / f"{name}.pkl"
    if converted.is_file():
        return load_discriminator(converted)
    if published.is_file():
        return load_r3gan_snapshot(published)
    raise ValueError(
        f"There is no discriminator {published}; download R3GAN's snapshot from "
        "https://github.com/brownvc/R3GAN, or choose another with --set adversarial.discriminator=..."
    )
