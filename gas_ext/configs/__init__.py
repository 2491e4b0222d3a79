"""Settings of the six data sets of the GS/GAS paper and of the demo, as YAML beside this module.

The figures are those of arXiv 2510.17699 (section 5 and appendix). A file of one's own of the same form works
in their place.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from gas_ext._utils.records import shown
from gas_ext._utils.seeds import parse_seeds
from gas_ext.configs.base import Positive, Section, TimeEpsilon, read_yaml, sentence
from gas_ext.configs.training import RATES, Adversarial, Run, Training
from gas_ext.solvers.presets import PresetName
from gas_ext.solvers.registry import SpacingName, build_solver, names

if TYPE_CHECKING:
    from gas_ext.schedules import NoiseSchedule
    from gas_ext.solvers.coefficients import Solver

__all__ = ["Config", "Run", "config_names", "config_text", "load_config"]


class TeacherSource(Section):
    """Which network, and where its weights are published.

    Parameters
    ----------
    kind : str
        "edm", "ldm", "stable-diffusion", "diffusers", "embedded" (ships with the package), or "custom" (a
        `Denoiser` made in Python).
    file, address : str, optional
        Name of the published file, and where it is published.
    hub : str, optional
        Repository on the Hugging Face hub that holds the file.
    megabytes : int, optional
        Size of the weights in 10^6 bytes, float32 (from the parameter count).
    architecture : dict, optional
        The network's own arguments, from which its memory is estimated without the weights.
    """

    kind: Literal["edm", "ldm", "stable-diffusion", "diffusers", "embedded", "custom"]
    file: str | None = None
    address: str | None = None
    hub: str | None = None
    megabytes: Positive | None = None
    architecture: dict[str, Any] | None = None


class Space(Section):
    """Shape of one state, and whether it is a latent that the teacher decodes."""

    shape: Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)]
    latent: bool = False


class Conditions(Section):
    """What the network is told: nothing, a class label, a prompt, or (of custom teachers) some tensor."""

    kind: Literal["none", "label", "prompt", "tensor"] = "none"
    num_classes: Positive | None = None

    @model_validator(mode="after")
    def _check(self) -> Conditions:
        if (self.kind == "label") != (self.num_classes is not None):
            raise ValueError("num_classes belongs to labels, and labels need it")
        return self


class TeacherSolver(Section):
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
        A spacing of `gas_ext.solvers.timesteps`, or "gits".
    t_eps : float
        Last time.
    guidance_scale : float, optional
        Classifier-free guidance, of teacher and student alike.
    """

    kind: Literal["unipc", "ipndm", "dpm-solver++"]
    steps: Positive | Literal["student + 1"]
    order: Annotated[int, Field(ge=1, le=4)]
    variant: Literal["bh1", "bh2"] = "bh1"
    timesteps: SpacingName
    t_eps: TimeEpsilon
    guidance_scale: float | None = None

    @model_validator(mode="after")
    def _check(self) -> TeacherSolver:
        if self.name.partition("@")[0] not in names():
            raise ValueError(f"{self.kind} has no order {self.order}, take a lower one")
        return self

    @property
    def name(self) -> str:
        """Name in `gas_ext.solvers.registry`, such as "unipc-3-bh1@logsnr"."""
        family = "dpm++" if self.kind == "dpm-solver++" else self.kind
        variant = f"-{self.variant}" if self.kind == "unipc" else ""
        return f"{family}-{self.order}{variant}@{self.timesteps}"

    def steps_for(self, student_steps: int) -> int:
        """Return the number of network evaluations of the teacher of a student of `student_steps`."""
        return student_steps + 1 if isinstance(self.steps, str) else self.steps

    def build(self, schedule: NoiseSchedule, student_steps: int) -> Solver:
        """Return the solver itself.

        Raises
        ------
        ValueError
            If there are no GITS times for so many steps, or for this schedule.
        """
        from gas_ext.solvers.generalized import GeneralizedSolver

        steps = self.steps_for(student_steps)
        if self.kind == "dpm-solver++" and self.timesteps != "gits":
            # The same as the catalog's, but in the form by which samples made so far are known.
            return GeneralizedSolver(
                schedule,
                steps,
                order=min(self.order, steps),
                t_eps=self.t_eps,
                theory_order=self.order,
                timesteps=self.timesteps,
            ).requires_grad_(False)
        return build_solver(self.name, schedule, steps, self.t_eps)


class Student(Section):
    """The solver that learns.

    Parameters
    ----------
    steps : list of int
        Numbers of network evaluations that the paper reports.
    t_eps : float
        Last time.
    preset : str
        What of the solver is learned, a name of `gas_ext.solvers.presets.PRESETS`: "gs" (everything), or one
        of the baselines "ld3", "learned-times", "s4s", "s4s-alt".
    """

    steps: Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)]
    t_eps: TimeEpsilon
    preset: PresetName = "gs"

    @model_validator(mode="before")
    @classmethod
    def _earlier(cls, values: Any) -> Any:
        """Read configs written when the preset was called kind."""
        if isinstance(values, dict) and "kind" in values and "preset" not in values:
            return {("preset" if name == "kind" else name): value for name, value in values.items()}
        return values


class Seeds(Section):
    """Seeds of teacher samples and of evaluation; they must not meet."""

    teacher: str
    evaluation: str

    @field_validator("teacher", "evaluation")
    @classmethod
    def _readable(cls, text: str) -> str:
        parse_seeds(text)
        return text


class Config(Section):
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
    run: Run | None = None


def config_names() -> list[str]:
    """Return the names of the configs that ship with the package.

    Examples
    --------
    >>> config_names()
    ['afhqv2', 'cifar10', 'coco', 'demo', 'ffhq', 'imagenet', 'lsun-bedroom']
    """
    return sorted(entry.name[:-5] for entry in files(__package__).iterdir() if entry.name.endswith(".yaml"))


def load_config(name: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """Load a config that ships with the package, or a YAML file of the same form.

    Parameters
    ----------
    name : str or path
        "cifar10", "ffhq", ..., or a path ending in .yaml or .yml.
    overrides : sequence of str
        Values that replace those of the file, such as "training.batch_size=8"; written as in YAML.
        "training.rate" stands for the rates of times, offsets and corrections too.

    Raises
    ------
    ValueError
        If there is no such config, it is not YAML, or a value is impossible: one sentence per fault.

    Examples
    --------
    >>> load_config("cifar10", ["training.batch_size=8", "student.t_eps=0.01"]).training.batch_size
    8
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ValueError(f"There is no config file {path}.")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not YAML: it is not UTF-8 ({error}).") from error
    elif str(name) in config_names():
        text = files(__package__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    else:
        raise ValueError(
            f"There is no config {str(name)!r}; expected one of {', '.join(config_names())}, or a YAML file."
        )
    values = read_yaml(text, str(name))
    if not isinstance(values, dict):
        raise ValueError(f"{name} is no config: expected sections such as teacher, space and training.")
    for override in overrides:
        _override(values, override)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(sentence(fault).removesuffix(".") for fault in error.errors())
        raise ValueError(f"{name}: {faults}.") from error


def config_text(config: Config) -> str:
    """Return a config as YAML that `load_config` reads back.

    Examples
    --------
    >>> print(config_text(load_config("demo")).splitlines()[0])
    name: demo
    """
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    return text


def _override(values: dict[str, Any], override: str) -> None:
    """Replace one value of a config as read from YAML."""
    place, found, text = override.partition("=")
    *sections, name = place.strip().split(".")
    if not found or not all((*sections, name)):
        raise ValueError(f"Cannot set {override!r}: write section.name=value, such as training.batch_size=8.")
    value = read_yaml(text, f"The value of {shown(override)}")
    for section in sections:
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            raise ValueError(f"Cannot set {override!r}: {section} is no section, but {shown(values)}.")
    values[name] = value
    if place.strip() == "training.rate":
        for rate in RATES:
            values.pop(rate, None)
