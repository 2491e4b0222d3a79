"""The sections of a config about training."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from gas_ext.configs.base import Betas, Count, Decay, Levels, LossKind, Positive, Rate, Section, Weight

STARTS = ("published", "classical", "fitted")

# A config with a rate uses the recipe of the paper (section 5), of which these are the other values.
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
    """The settings that `gas_ext.training.TrainingConfig` and the `training` section of a config share.

    The defaults suit a budget of minutes. The published recipe (paper, section 5) is ``optimizer="adam"``,
    ``betas=(0.9, 0.999)``, all rates 1e-3, ``schedule="constant"``, ``warmup=0``, ``ema=0.999``, ``clip=1.0``
    and 10,000 or more iterations.

    Parameters
    ----------
    loss : str, default "l1"
        Distance to the teacher's samples: "l1", "l2", "huber", "lpips" or "perceptual".
    batch_size : int, default 8
        Samples per iteration, over all processes; at most the number of training samples.
    time_rate, offset_rate, coefficient_rate : float, default 0.02
        Learning rates of the timestep logits, of the time offsets, and of both correction tables.
    scale_rates : bool, default True
        With "full_adam", scale these rates of GS by (39 / P)^(1/2) if there are P > 39 parameters, including
        unused ones of the tables: 1 at 4 steps, 0.69 at 6, 0.42 at 10.
    optimizer : str, default "full_adam"
        "full_adam" (`gas_ext.training.optimizers.FullMatrixAdam`) or "adam".
    betas : (float, float), default (0.9, 0.98)
        Decay of the optimizer's first and second moments.
    schedule : str, default "cosine"
        Learning rates after the warm-up: "cosine" (to zero at the last iteration) or "constant".
    warmup : int, default 20
        Iterations over which the rates rise linearly.
    ema : float, default 0.9
        Decay of the exponential moving average of the parameters, which is the result; 0 disables it.
    clip : float, optional
        Largest norm of the gradient over all parameters. Default: no clipping.
    accumulation : int, default 1
        Parts into which each process's share of the batch is split. One part is in memory at a time; for
        losses that are means over the batch, such as all of `gas_ext.training.losses`, the step is the same
        up to rounding.
    recompute : bool, default False
        Recompute the network in the backward pass instead of storing its activations; see `GASSampler`.
    autocast : str, optional
        Precision of the network, "bfloat16" or "float16". Default: the network's own.
    max_rejected : int, default 10
        Consecutive iterations without finite loss and gradient, which are skipped, before training stops.
    seed : int, default 0
        Seed of the order of the samples and, in GAS, of the fresh noise. Random numbers of an iteration
        depend only on the seed and the number of the iteration.
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
    """A number for GS (distillation) and one for GAS (distillation and an adversarial term)."""

    gs: Positive
    gas: Positive


class Training(Recipe):
    """The `training` section of a config: a recipe with explicit loss and batch size, and its extent.

    Omitted settings follow one of two recipes. With a `rate`, the published one: Adam at that constant rate,
    started from DPM-Solver++(3M) on uniform times. Without, the default recipe: started from the best
    DPM-Solver++ with coefficients fitted to the teacher step by step, and `FullMatrixAdam` with a rate that
    falls to 0.
    """

    loss: LossName
    batch_size: Positive
    iterations: PerLoss
    rate: Rate | None = None  # of all parameters; selects the published recipe
    # "published", "classical" (the best DPM-Solver++), "fitted" (the same with fitted coefficients, if the
    # student learns coefficients), or a solver file, which may have another number of steps.
    start: str = "fitted"
    validate_every: Positive = 100
    checkpoint_every: Positive = 100
    shown_images: Count = 16  # validation samples in the pictures; 0 for no pictures
    train_samples: PerLoss  # the first teacher samples
    validation_samples: Positive  # held out, the next ones

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        """Fill in the published recipe if there is a rate, and both numbers of a `PerLoss`."""
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
            raise ValueError(f"expected {', '.join(STARTS)}, or a solver file (.safetensors)")
        return start

    def iterations_for(self, loss: LossKind) -> int:
        """Return the number of iterations of GS or GAS."""
        return int(getattr(self.iterations, loss))

    def train_samples_for(self, loss: LossKind) -> int:
        """Return the number of training samples of GS or GAS."""
        return int(getattr(self.train_samples, loss))


class Adversarial(Section):
    """The adversarial term of GAS."""

    # "r3gan-cifar10" or "r3gan-ffhq64" (published snapshots), "r3gan-random" (R3GAN's network for latents
    # with random weights), any registered discriminator with random weights, or a file of
    # `gas_ext.training.discriminators.save_discriminator`.
    discriminator: str
    settings: dict[str, Any] = Field(default_factory=dict)  # of its class, if it starts from random weights
    rate: Rate  # of its Adam
    betas: Betas = (0.9, 0.999)
    weight: Weight  # of the term in the student's loss
    gamma: Weight  # of the gradient penalties
    loss: Literal["relativistic", "gan"] = "relativistic"
    # Noise levels (sigma / alpha) at which the discriminator also sees the teacher's corrections; see
    # `gas_ext.training.discriminators.TeacherView`. None, as published: only the samples.
    noise_levels: Levels = ()


class Run(Section):
    """What distinguishes a run from others on the same data; a section of config.yaml in its folder."""

    steps: Positive  # NFE of the solver
    loss: LossKind = "gs"
    teacher: str | None = None  # folder, if not the default one
    samples: str | None = None
