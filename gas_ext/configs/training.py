"""The sections of a config that say how a solver is learned."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from gas_ext.configs.base import Betas, Count, Decay, Levels, LossKind, Positive, Rate, Section, Weight

STARTS = ("published", "classical", "fitted")

# What a config leaves out: the recipe of the paper (section 5) where it gives a rate, else the package's own,
# whose numbers are the defaults of gas_ext.training.TrainingConfig.
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
OWN = {
    "start": "fitted",
    "scale_rates": True,
    "optimizer": "full_adam",
    "betas": (0.9, 0.98),
    "schedule": "cosine",
    "warmup": 20,
    "ema": 0.9,
    "clip": None,
}
OWN_RATE = 2e-2
RATES = ("time_rate", "offset_rate", "coefficient_rate")


class PerLoss(Section):
    """A number for GS (distillation alone) and one for GAS (with the adversarial term)."""

    gs: Positive
    gas: Positive


class Training(Section):
    """Settings of training.

    What is left out follows one of two recipes. With a `rate`, the published one: Adam at that constant
    rate, started from DPM-Solver++(3M) on uniform times. Without, the package's own: started from the best
    DPM-Solver++, its weights fitted to the teacher step by step, and `FullMatrixAdam` with a rate that
    falls to 0.

    Parameters
    ----------
    loss : str
        Distance to the teacher's samples: "l1", "l2", "huber", "lpips" or "perceptual".
    batch_size : int
        Samples per iteration, over all processes.
    iterations : int, or one for gs and one for gas
        Number of iterations.
    rate : float, optional
        One learning rate for everything, of the published recipe.
    time_rate, offset_rate, coefficient_rate : float
        Learning rates of times, offsets and corrections.
    scale_rates : bool
        Whether GS of more than four steps takes less of them; as in `gas_ext.training.TrainingConfig`.
    start : str
        "published", "classical" (the best of DPM-Solver++), "fitted" (that, with fitted weights, where the
        student learns weights), or a solver's file, which may have another number of steps.
    optimizer, betas, schedule, warmup, ema, clip, accumulation, recompute, autocast, max_rejected, seed
        As in `gas_ext.training.TrainingConfig`.
    validate_every, checkpoint_every : int
        Iterations from one validation, or checkpoint, to the next.
    shown_images : int
        Validation samples in the pictures; 0 for no pictures.
    train_samples : int, or one for gs and one for gas
        The first teacher samples, which are learned from.
    validation_samples : int
        The next ones, which are judged on.
    """

    loss: Literal["l1", "l2", "huber", "lpips", "perceptual"]
    batch_size: Positive
    iterations: PerLoss
    rate: Rate | None = None
    time_rate: Weight
    offset_rate: Weight
    coefficient_rate: Weight
    scale_rates: bool
    start: str
    optimizer: Literal["full_adam", "adam"]
    betas: Betas
    schedule: Literal["cosine", "constant"]
    warmup: Count
    ema: Decay
    clip: Rate | None
    accumulation: Positive = 1
    recompute: bool = False
    autocast: Literal["bfloat16", "float16"] | None = None
    max_rejected: Positive = 10
    validate_every: Positive = 100
    checkpoint_every: Positive = 100
    shown_images: Count = 16
    train_samples: PerLoss
    validation_samples: Positive
    seed: Count = 0

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        """Fill in the recipe, so that a config says everything that it means."""
        if not isinstance(values, dict):
            return values
        rate = values.get("rate")
        recipe = OWN if rate is None else PUBLISHED
        rates = dict.fromkeys(RATES, rate if isinstance(rate, int | float) else OWN_RATE)
        completed = {**recipe, **rates, **values}
        for name in ("iterations", "train_samples"):
            number = completed.get(name)
            if isinstance(number, int) and not isinstance(number, bool):
                completed[name] = {"gs": number, "gas": number}
        return completed

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
