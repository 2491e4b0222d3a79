"""Settings of the six data sets of the GS/GAS paper and of the demo, as YAML beside this module.

The figures are those of arXiv 2510.17699 (section 5 and appendix). A file of one's own of the same form works
in their place.
"""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gas_ext.seeds import parse_seeds

if TYPE_CHECKING:
    from gas_ext.sampler import Solver
    from gas_ext.schedules import NoiseSchedule

__all__ = ["Config", "config_names", "load_config"]

Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
TimeEpsilon = Annotated[float, Field(ge=0, lt=1)]
SPACINGS = Literal["uniform", "quadratic", "logsnr", "edm", "gits"]


class _Section(BaseModel):
    """A part of a config: no unknown keys, no silent conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PerLoss(_Section):
    """A number for GS (distillation alone) and one for GAS (with the adversarial term)."""

    gs: Positive
    gas: Positive


class TeacherSource(_Section):
    """Which network, and where its weights are published.

    Parameters
    ----------
    kind : str
        "edm", "ldm", "stable-diffusion", "diffusers", or "embedded" (ships with the package).
    file, address : str, optional
        Name of the published file, and where it is published.
    hub : str, optional
        Repository on the Hugging Face hub that holds the file.
    megabytes : int, optional
        Size of the weights in 10^6 bytes, float32 (from the parameter count).
    architecture : dict, optional
        The network's own arguments, from which its memory is estimated without the weights.
    """

    kind: Literal["edm", "ldm", "stable-diffusion", "diffusers", "embedded"]
    file: str | None = None
    address: str | None = None
    hub: str | None = None
    megabytes: Positive | None = None
    architecture: dict[str, Any] | None = None


class Space(_Section):
    """Shape of one state, and whether it is a latent that the teacher decodes."""

    shape: Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)]
    latent: bool = False


class Conditions(_Section):
    """What the network is told: nothing, a class label, or a prompt."""

    kind: Literal["none", "label", "prompt"] = "none"
    num_classes: Positive | None = None

    @model_validator(mode="after")
    def _check(self) -> Conditions:
        if (self.kind == "label") != (self.num_classes is not None):
            raise ValueError("num_classes belongs to labels, and labels need it")
        return self


class TeacherSolver(_Section):
    """The many-step solver whose samples are learned from.

    Parameters
    ----------
    kind : str
        "unipc", "ipndm" or "dpm-solver++".
    steps : int or "student + 1"
        Network evaluations.
    order : int
        Order of the multistep formula.
    variant : str
        B(h) of UniPC, "bh1" or "bh2".
    timesteps : str
        A spacing of `gas_ext.spacings`, or "gits".
    t_eps : float
        Last time.
    guidance_scale : float, optional
        Classifier-free guidance, of teacher and student alike.
    """

    kind: Literal["unipc", "ipndm", "dpm-solver++"]
    steps: Positive | Literal["student + 1"]
    order: Annotated[int, Field(ge=1, le=4)]
    variant: Literal["bh1", "bh2"] = "bh1"
    timesteps: SPACINGS
    t_eps: TimeEpsilon
    guidance_scale: float | None = None

    def steps_for(self, student_steps: int) -> int:
        """Return the number of network evaluations of the teacher of a student of `student_steps`."""
        return student_steps + 1 if isinstance(self.steps, str) else self.steps

    def build(self, schedule: NoiseSchedule, student_steps: int) -> Solver:
        """Return the solver itself.

        Raises
        ------
        ValueError
            If there are no GITS times for so many steps.
        """
        from gas_ext.baselines import classical_solver
        from gas_ext.multistep import IPNDMSolver, UniPCSolver, gits_timesteps

        steps = self.steps_for(student_steps)
        times: Any = gits_timesteps(schedule, steps) if self.timesteps == "gits" else self.timesteps
        if self.kind == "unipc":
            return UniPCSolver(schedule, steps, self.order, self.t_eps, times, variant=self.variant)
        if self.kind == "ipndm":
            return IPNDMSolver(schedule, steps, self.order, self.t_eps, times)
        return classical_solver(schedule, steps, self.order, times, self.t_eps).solver


class Student(_Section):
    """Numbers of network evaluations that the paper reports, and the last time."""

    steps: Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)]
    t_eps: TimeEpsilon


class Seeds(_Section):
    """Seeds of teacher samples and of evaluation; they must not meet."""

    teacher: str
    evaluation: str

    @field_validator("teacher", "evaluation")
    @classmethod
    def _readable(cls, text: str) -> str:
        parse_seeds(text)
        return text


class Training(_Section):
    """Settings of training; a rate of None leaves `TrainingConfig`'s own recipe."""

    loss: Literal["l1", "l2", "huber", "lpips"]
    batch_size: Positive
    iterations: Positive | PerLoss
    rate: Rate | None = None
    ema: Annotated[float, Field(ge=0, lt=1)] | None = None
    clip: Rate | None = None
    train_samples: PerLoss
    validation_samples: Positive

    def iterations_for(self, loss: Literal["gs", "gas"]) -> int:
        """Return the number of iterations of GS or GAS."""
        return self.iterations if isinstance(self.iterations, int) else getattr(self.iterations, loss)


class Adversarial(_Section):
    """The adversarial term of GAS."""

    discriminator: Literal["r3gan-cifar10", "r3gan-ffhq64", "r3gan-random"]
    rate: Rate
    weight: Rate
    gamma: Rate


class Config(_Section):
    """Everything about one data set; see the sections.

    Examples
    --------
    >>> config = load_config("cifar10")
    >>> config.space.shape, config.teacher_solver.steps_for(4)
    ((3, 32, 32), 20)
    """

    name: str
    title: str
    teacher: TeacherSource
    space: Space
    conditions: Conditions
    teacher_solver: TeacherSolver
    student: Student
    seeds: Seeds
    training: Training
    adversarial: Adversarial | None = None


def config_names() -> list[str]:
    """Return the names of the configs that ship with the package.

    Examples
    --------
    >>> config_names()
    ['afhqv2', 'cifar10', 'coco', 'demo', 'ffhq', 'imagenet', 'lsun-bedroom']
    """
    return sorted(entry.name[:-5] for entry in files(__package__).iterdir() if entry.name.endswith(".yaml"))


def load_config(name: str | os.PathLike[str]) -> Config:
    """Load a config that ships with the package, or a YAML file of the same form.

    Parameters
    ----------
    name : str or path
        "cifar10", "ffhq", ..., or a path ending in .yaml or .yml.

    Raises
    ------
    ValueError
        If there is no such config, it is not YAML, or a value is impossible: one sentence per fault.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ValueError(f"There is no config file {path}.")
        text = path.read_text()
    elif str(name) in config_names():
        text = files(__package__).joinpath(f"{name}.yaml").read_text()
    else:
        raise ValueError(
            f"There is no config {str(name)!r}; expected one of {', '.join(config_names())}, or a YAML file."
        )
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{name} is no config: expected sections such as teacher, space and training.")
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ValueError(" ".join(f"{name}: {_sentence(fault)}" for fault in error.errors())) from error


def _sentence(fault: Any) -> str:
    """Say one fault in one sentence: where, what was given, what is expected."""
    place = ".".join(str(part) for part in fault["loc"]) or "the config"
    if fault["type"] == "extra_forbidden":
        return f"{place} is not a known setting; remove it."
    if fault["type"] == "missing":
        return f"{place} is missing; add it."
    return f"{place} is {fault['input']!r}: {fault['msg'][0].lower()}{fault['msg'][1:]}."
