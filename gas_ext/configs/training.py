"""The sections of a config that say how a solver is learned."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from gas_ext.configs.base import Betas, Count, Decay, Levels, LossKind, Positive, Rate, Section, Weight

STARTS = ("published", "classical", "fitted")

# Where a config gives a rate, it means the recipe of the paper (section 5), whose other values these are.
PUBLISHED = {
    "start": "published",
    "scale_rates": False,
    "optimizer": "adam",
    "betas": (0.9, 0.999),
    "schedule": "constant",
    "warmup": 0,
    "ema": 0.999,
    "clip": 1.0,
}
RATES = ("time_rate", "offset_rate", "coefficient_rate")
LossName = Literal["l1", "l2", "huber", "lpips", "perceptual"]


class Recipe(Section):
    """How a solver is learned: what `gas_ext.training.TrainingConfig` and a config's section share.

    The defaults are for a budget of minutes. The published recipe (paper, section 5) is ``optimizer="adam"``,
    ``betas=(0.9, 0.999)``, all rates 1e-3, ``schedule="constant"``, ``warmup=0``, ``ema=0.999``, ``clip=1.0``
    and 10,000 or more iterations.

    Parameters
    ----------
    loss : str
        Distance to the teacher's samples: "l1", "l2", "huber", "lpips" or "perceptual".
    batch_size : int
        Samples per iteration, over all processes; at most the number of training samples is used.
    time_rate, offset_rate, coefficient_rate : float
        Learning rates of the timestep logits, of the time offsets, and of both correction tables.
    scale_rates : bool
        Whether GS of many steps takes less of these rates, with "full_adam": (39 / P)^(1/2) where there are
        P > 39 numbers, the unused ones of the tables among them. That is 1 at 4 steps, 0.69 at 6, 0.42 at 10.
    optimizer : str
        "full_adam" (`gas_ext.training.optimizers.FullMatrixAdam`) or "adam".
    betas : (float, float)
        Decay of the optimizer's first and second moments.
    schedule : str
        "cosine" (to zero at the last iteration) or "constant", after the warm-up.
    warmup : int
        Iterations over which the rates rise linearly.
    ema : float
        Decay of the running average of the parameters that is the result; 0 takes the last parameters.
    clip : float or None
        Largest norm of the gradient over all parameters; None for no clipping.
    accumulation : int
        Parts into which each process's share of the batch is cut. One part is in memory at a time; for losses
        that are means over the batch, as all of `gas_ext.training.losses` are, the step is the same up to
        rounding.
    recompute : bool
        Evaluate the network again in the backward pass instead of keeping its activations; see `GASSampler`.
    autocast : str or None
        Precision of the network, "bfloat16" or "float16"; its own if None. Everything else keeps its own.
    max_rejected : int
        Iterations in a row without finite loss and gradient, all left out, before training gives up.
    seed : int
        Seed of everything random: the order of the samples and, in GAS, the fresh noise. What is drawn in an
        iteration follows from the seed and its number alone.
    """

    loss: LossName = "l1"
    batch_size: Positive = 8
    time_rate: Weight = 2e-2
    offset_rate: Weight = 2e-2
    coefficient_rate: Weight = 2e-2
    scale_rates: bool = True
    optimizer: Literal["full_adam", "adam"] = "full_adam"
    betas: Betas = (0.9, 0.98)
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: Count = 20
    ema: Decay = 0.9
    clip: Rate | None = None
    accumulation: Positive = 1
    recompute: bool = False
    autocast: Literal["bfloat16", "float16"] | None = None
    max_rejected: Positive = 10
    seed: Count = 0


class PerLoss(Section):
    """A number for GS (distillation alone) and one for GAS (with the adversarial term)."""

    gs: Positive
    gas: Positive


class Training(Recipe):
    """Settings of training: a recipe, of which the loss and the batch size must be given, and its extent.

    What is left out follows one of two recipes. With a `rate`, the published one: Adam at that constant
    rate, started from DPM-Solver++(3M) on uniform times. Without, the package's own: started from the best
    DPM-Solver++, its weights fitted to the teacher step by step, and `FullMatrixAdam` with a rate that
    falls to 0.

    Parameters
    ----------
    iterations : int, or one for gs and one for gas
        Number of iterations.
    rate : float, optional
        One learning rate for everything, of the published recipe.
    start : str
        "published", "classical" (the best of DPM-Solver++), "fitted" (that, with fitted weights, where the
        student learns weights), or a solver's file, which may have another number of steps.
    validate_every, checkpoint_every : int
        Iterations from one validation, or checkpoint, to the next.
    shown_images : int
        Validation samples in the pictures; 0 for no pictures.
    train_samples : int, or one for gs and one for gas
        The first teacher samples, which are learned from.
    validation_samples : int
        The next ones, which are judged on.
    """

    loss: LossName
    batch_size: Positive
    iterations: PerLoss
    rate: Rate | None = None
    start: str = "fitted"
    validate_every: Positive = 100
    checkpoint_every: Positive = 100
    shown_images: Count = 16
    train_samples: PerLoss
    validation_samples: Positive

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        """Fill in the published recipe where there is a rate, and both numbers of a `PerLoss`."""
        if not isinstance(values, dict):
            return values
        rate = values.get("rate")
        if rate is not None:
            rates = dict.fromkeys(RATES, rate) if isinstance(rate, int | float) else {}
            values = {**PUBLISHED, **rates, **values}
        numbers = {name: values.get(name) for name in ("iterations", "train_samples")}
        both = {name: {"gs": n, "gas": n} for name, n in numbers.items() if type(n) is int}
        return {**values, **both}

    @field_validator("start")
    @classmethod
    def _known_start(cls, start: str) -> str:
        if start not in STARTS and not start.endswith(".safetensors"):
            raise ValueError(f"expected {', '.join(STARTS)}, or a solver's file (.safetensors)")
        return start

    def iterations_for(self, loss: LossKind) -> int:
        """Return the number of iterations of GS or GAS."""
        return int(getattr(self.iterations, loss))

    def train_samples_for(self, loss: LossKind) -> int:
        """Return the number of samples that GS or GAS learns from."""
        return int(getattr(self.train_samples, loss))


class Adversarial(Section):
    """The adversarial term of GAS.

    Parameters
    ----------
    discriminator : str
        "r3gan-cifar10" or "r3gan-ffhq64" (published snapshots), "r3gan-random" (R3GAN's network for latents,
        from random weights), the name of any registered discriminator, from random weights, or a file of
        `gas_ext.training.discriminators.save_discriminator`.
    settings : dict
        Its class's own arguments, where it is built from random weights.
    rate : float
        Learning rate of its Adam.
    betas : (float, float)
        Decays of Adam's moments.
    weight : float
        Weight of the term in the student's loss.
    gamma : float
        Weight of the gradient penalties.
    loss : str
        "relativistic", or "gan" for the ordinary one.
    noise_levels : list of float
        Noise levels (sigma / alpha) at which the discriminator is shown the teacher's corrections beside the
        samples, see `gas_ext.training.discriminators.TeacherView`; none: the samples alone, as published.
    """

    discriminator: str
    settings: dict[str, Any] = Field(default_factory=dict)
    rate: Rate
    betas: Betas = (0.9, 0.999)
    weight: Weight
    gamma: Weight
    loss: Literal["relativistic", "gan"] = "relativistic"
    noise_levels: Levels = ()


class Run(Section):
    """What distinguishes a run from others on the same data; config.yaml of its folder has this section.

    Parameters
    ----------
    steps : int
        Network evaluations of the solver.
    loss : str
        "gs" or "gas".
    teacher, samples : str, optional
        Folders of the teacher and of its samples, where these are not the usual ones.
    """

    steps: Positive
    loss: LossKind = "gs"
    teacher: str | None = None
    samples: str | None = None
