"""Configs of the six data sets of the GS/GAS paper and of the demo, as YAML files in this folder.

The values are those of arXiv 2510.17699 (section 5 and appendix). A custom file of the same form works too.
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

# Settings that had another name in earlier configs, which are still read.
RENAMED = {"student.kind": "student.preset"}

__all__ = ["Config", "Run", "config_names", "config_text", "load_config"]


class TeacherSource(Section):
    """The teacher's network, and the address of its published weights."""

    # "embedded" ships with the package; "custom" is a `Denoiser` made in Python.
    kind: Literal["edm", "ldm", "stable-diffusion", "diffusers", "embedded", "custom"]
    file: str | None = None  # name of the published file
    address: str | None = None
    hub: str | None = None  # repository on the Hugging Face hub
    megabytes: Positive | None = None  # weights in float32, 10^6 bytes, from the parameter count
    architecture: dict[str, Any] | None = None  # arguments of the network, to estimate its memory


class Space(Section):
    """Shape of one sample, and whether it is a latent that the teacher decodes."""

    shape: Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)]
    latent: bool = False


class Conditions(Section):
    """The network's condition: none, a class label, a prompt, or (for custom teachers) a tensor."""

    kind: Literal["none", "label", "prompt", "tensor"] = "none"
    num_classes: Positive | None = None

    @model_validator(mode="after")
    def _check(self) -> Conditions:
        if (self.kind == "label") != (self.num_classes is not None):
            raise ValueError("num_classes is required for labels, and only valid for labels")
        return self


class TeacherSolver(Section):
    """The many-step solver of the teacher's samples."""

    kind: Literal["unipc", "ipndm", "dpm-solver++"]
    steps: Positive | Literal["student + 1"]  # NFE
    order: Annotated[int, Field(ge=1, le=4)]
    variant: Literal["bh1", "bh2"] = "bh1"  # B(h) of UniPC
    timesteps: SpacingName  # a spacing of `gas_ext.solvers.timesteps`, or "gits"
    t_eps: TimeEpsilon  # last time
    guidance_scale: float | None = None  # of teacher and student

    @model_validator(mode="after")
    def _check(self) -> TeacherSolver:
        if self.name.partition("@")[0] not in names():
            raise ValueError(f"{self.kind} has no order {self.order}, use a lower one")
        return self

    @property
    def name(self) -> str:
        """Name in `gas_ext.solvers.registry`, such as "unipc-3-bh1@logsnr"."""
        family = "dpm++" if self.kind == "dpm-solver++" else self.kind
        variant = f"-{self.variant}" if self.kind == "unipc" else ""
        return f"{family}-{self.order}{variant}@{self.timesteps}"

    def steps_for(self, student_steps: int) -> int:
        """Return the teacher's NFE for a student's NFE."""
        return student_steps + 1 if isinstance(self.steps, str) else self.steps

    def build(self, schedule: NoiseSchedule, student_steps: int) -> Solver:
        """Return the solver; ValueError if there are no GITS times for its NFE or the schedule."""
        from gas_ext.solvers.generalized import GeneralizedSolver

        steps = self.steps_for(student_steps)
        if self.kind == "dpm-solver++" and self.timesteps != "gits":
            # The same solver as `build_solver` returns, in the form that existing sample folders record.
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
    """The solver that is learned."""

    steps: Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)]  # NFEs that the paper reports
    t_eps: TimeEpsilon  # last time
    preset: PresetName = "gs"  # what is learned: everything, or the parts of a baseline


class Seeds(Section):
    """Seeds of teacher samples and of evaluation; they must not overlap."""

    teacher: str
    evaluation: str

    @field_validator("teacher", "evaluation")
    @classmethod
    def _readable(cls, text: str) -> str:
        parse_seeds(text)
        return text


class Config(Section):
    """All settings of one data set, by section.

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
    overrides : sequence of str, optional
        Values that override those of the file, in YAML, such as "training.batch_size=8". "training.rate" also
        overrides the rates of times, offsets and corrections.

    Raises
    ------
    ValueError
        If there is no such config, it is not YAML, or values are invalid; the message lists all errors.

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
        raise ValueError(f"{name} is not a config; expected sections such as teacher, space and training.")
    _rename(values)
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


def _rename(values: dict[str, Any]) -> None:
    """Move settings of an earlier file to their present names, unless those are set too."""
    for before, now in RENAMED.items():
        (section, old), (_, new) = before.split("."), now.split(".")
        settings = values.get(section)
        if isinstance(settings, dict) and old in settings and new not in settings:
            settings[new] = settings.pop(old)


def _override(values: dict[str, Any], override: str) -> None:
    """Override one value of a config that was read from YAML."""
    key, equals, text = override.partition("=")
    key = RENAMED.get(key.strip(), key.strip())
    *sections, name = key.split(".")
    if not equals or not all((*sections, name)):
        raise ValueError(f"Cannot set {override!r}; write section.name=value, such as training.batch_size=8.")
    value = read_yaml(text, f"The value of {shown(override)}")
    for section in sections:
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            raise ValueError(f"Cannot set {override!r}: {section} is not a section, but {shown(values)}.")
    values[name] = value
    if key == "training.rate":
        for rate in RATES:
            values.pop(rate, None)
