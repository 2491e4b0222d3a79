"""The plan of a run: what it does, needs and costs, before anything is loaded (`gas-ext train --dry-run`)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gas_ext._utils.seeds import format_seeds, parse_seeds
from gas_ext.configs import Config, Run
from gas_ext.configs.base import LossKind
from gas_ext.configs.training import Recipe
from gas_ext.samples import TeacherSamples
from gas_ext.samples.manifest import MANIFEST
from gas_ext.solvers.presets import get_preset
from gas_ext.solvers.registry import display_name
from gas_ext.solvers.timesteps import GITS_SIGMAS
from gas_ext.teachers.folder import CARD, config_option, import_command, teacher_folder
from gas_ext.teachers.sources import find_weights, weights_folder
from gas_ext.training.memory import training_bytes
from gas_ext.training.settings import TrainingConfig
from gas_ext.training.teacher_samples import PIXEL_LOSSES

_DISCRIMINATORS = {
    "r3gan-cifar10": "R3GAN snapshot for CIFAR-10",
    "r3gan-ffhq64": "R3GAN snapshot for FFHQ 64x64",
}


@dataclass(frozen=True)
class NeededFile:
    """A path or package that a run needs, and how to get it if it is not present."""

    what: str
    path: str
    present: bool
    remedy: str = ""


@dataclass(frozen=True)
class RunPlan:
    """A config with its section `run`, and what follows from them; see `make_plan`."""

    config: Config
    run: Run

    @property
    def training_config(self) -> TrainingConfig:
        """The config's settings of the iterations."""
        training = self.config.training
        recipe = {name: getattr(training, name) for name in Recipe.model_fields}
        return TrainingConfig(iterations=training.iterations_for(self.run.loss), **recipe)

    @property
    def samples(self) -> dict[str, int]:
        """Numbers of "training" and "validation" samples."""
        training = self.config.training
        counts = training.train_samples_for(self.run.loss), training.validation_samples
        return dict(zip(("training", "validation"), counts, strict=True))

    @property
    def samples_folder(self) -> Path:
        """Folder of the teacher's samples, which need not exist."""
        return Path(self.run.samples or samples_folder(self.config, self.run.steps))

    @property
    def teacher_nfe(self) -> int:
        """Network evaluations (NFE) per teacher sample; ValueError if the teacher has no times for them."""
        steps = self.run.steps
        nfe = self.config.teacher_solver.steps_for(steps)
        if self.config.teacher_solver.timesteps == "gits" and nfe not in GITS_SIGMAS:
            known = ", ".join(map(str, GITS_SIGMAS))
            raise ValueError(
                f"The teacher of {self.config.name} takes {nfe} steps for a student of {steps}, but there "
                f"are GITS times only for {known} steps; choose another number with --steps."
            )
        return nfe

    @property
    def files(self) -> list[NeededFile]:
        """Needed files; ValueError if the config has fewer seeds than samples."""
        config, loss = self.config, self.run.loss
        files = _teacher_files(config, self.run.teacher or teacher_folder(config))
        count = sum(self.samples.values())
        files.append(_teacher_samples(config, self.run.steps, count, self.samples_folder))
        if config.training.loss in PIXEL_LOSSES:
            files.append(_perceptual_loss(config.training.loss))
        if loss == "gas" and config.adversarial is not None:
            files += _discriminator(config.adversarial.discriminator)
        return files

    @property
    def ready(self) -> bool:
        """Whether every file is present."""
        return all(file.present for file in self.files)

    @property
    def evaluations(self) -> dict[str, int]:
        """Network evaluations of single samples by purpose; guidance doubles the batch.

        In GAS, evaluations without gradient are those of the discriminator's fakes and of its view.
        """
        steps, shown = self.run.steps, self._shown
        drawn = self.training_config.iterations * self.training_config.batch_size
        unlearned = drawn * (steps + 3 * shown) if self.run.loss == "gas" else 0
        return {
            "for the teacher's samples": sum(self.samples.values()) * self.teacher_nfe,
            "in training": drawn * (steps + shown),
            "without gradient, for the discriminator": unlearned,
        }

    @property
    def _shown(self) -> int:
        """Number of evaluations in the discriminator's view, see `TeacherView`.

        Those of the student's samples have a gradient; those of the fakes, and two of the teacher's samples,
        do not.
        """
        adversarial = self.config.adversarial if self.run.loss == "gas" else None
        return 0 if adversarial is None else len(adversarial.noise_levels)

    @property
    def memory(self) -> dict[str, int] | str:
        """Bytes for one part of a batch, see `training_bytes`; a message if they are unknown.

        The graph has the evaluations of the solve and those of the discriminator's view.
        """
        training, evaluations = self.config.training, self.run.steps + self._shown
        part = training.model_copy(update={"batch_size": -(-training.batch_size // training.accumulation)})
        try:
            sizes = training_bytes(self.config.model_copy(update={"training": part}), evaluations)
        except (ImportError, ValueError) as error:
            return f"unknown ({' '.join(str(error).split())})"
        if training.recompute:  # one evaluation at a time
            one = sizes["activations"] // evaluations
            sizes = {**sizes, "activations": one, "total": sizes["total"] - sizes["activations"] + one}
        return sizes

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "title": self.config.title,
            "loss": self.run.loss,
            "files": [asdict(file) for file in self.files],
            "teacher_solver": _describe(self.config),
            "student_preset": self.config.student.preset,
            "teacher_nfe": self.teacher_nfe,
            "student_nfe": self.run.steps,
            "samples": self.samples,
            "evaluations": self.evaluations,
            "memory": self.memory,
        }

    def lines(self) -> list[str]:
        """Return the plan as text."""
        preset = self.config.student.preset
        lines = [self.config.title, f"loss: {self.run.loss.upper()}", "", "files"]
        for file in self.files:
            state = "present" if file.present else "absent "
            lines.append(f"  {state}  {file.what + ':':17} {file.path}")
            if file.remedy:
                lines.append(f"           {'':17} {file.remedy}")
        lines += [
            "",
            f"teacher: {_describe(self.config)}, NFE {self.teacher_nfe}",
            f"student: {'' if preset == 'gs' else get_preset(preset).title + ', '}NFE {self.run.steps}",
            "samples: " + ", ".join(f"{count:,} for {use}" for use, count in self.samples.items()),
            "network evaluations: "
            + ", ".join(f"{count:,} {use}" for use, count in self.evaluations.items() if count),
            "memory: " + self._memory_in_words(),
        ]
        return lines

    def _memory_in_words(self) -> str:
        memory = self.memory
        if isinstance(memory, str):
            return memory
        parts = [f"{name} {size / 1e9:.2f} GB" for name, size in memory.items() if name != "total"]
        left_out = "the loss's network" + (" and the discriminator" if self.run.loss == "gas" else "")
        return f"about {memory['total'] / 1e9:.2f} GB ({', '.join(parts)}), without {left_out}"


def make_plan(
    config: Config,
    loss: LossKind | None = None,
    steps: int | None = None,
    *,
    teacher: str | Path | None = None,
    samples: str | os.PathLike[str] | None = None,
) -> RunPlan:
    """Return the plan of a run; arguments override the config's section `run`.

    Defaults are the loss "gs", the first entry of student.steps, and the default folders of the imported
    teacher and its samples.

    Examples
    --------
    >>> from gas_ext.configs import load_config
    >>> plan = make_plan(load_config("cifar10"), steps=6)
    >>> plan.teacher_nfe, plan.samples
    (20, {'training': 1400, 'validation': 1000})
    """
    given = {"loss": loss, "steps": steps, "teacher": teacher, "samples": samples}
    values = {
        name: os.fspath(value) if isinstance(value, os.PathLike) else value
        for name, value in given.items()
        if value is not None
    }
    before = config.run or Run(steps=config.student.steps[0])
    run = Run(**{**before.model_dump(), **values})
    return RunPlan(config.model_copy(update={"run": run}), run)


def samples_folder(config: Config, steps: int) -> Path:
    """Return the default folder: samples/NAME, or NAME-N if the teacher depends on the student's steps."""
    depends = isinstance(config.teacher_solver.steps, str)
    return Path("samples") / (f"{config.name}-{steps}" if depends else config.name)


def _describe(config: Config) -> str:
    solver = config.teacher_solver
    scale = f", guidance {solver.guidance_scale}" if solver.guidance_scale is not None else ""
    return f"{display_name(solver.name)} to {solver.t_eps:g}{scale}"


def _teacher_samples(config: Config, steps: int, count: int, folder: Path) -> NeededFile:
    """Check whether there are enough samples."""
    remedy = ""
    if (folder / MANIFEST).is_file():
        try:
            samples = TeacherSamples.open(folder)
        except ValueError as error:
            remedy = str(error)
        else:
            if len(samples) < count:
                grows = samples.settings["solver"] is not None
                rest = "training generates the rest" if grows else "choose another folder with --samples"
                remedy = f"it holds {len(samples)} of {count} samples; {rest}"
        return NeededFile("teacher samples", str(folder), not remedy, remedy)
    seeds = parse_seeds(config.seeds.teacher)
    if len(seeds) < count:
        raise ValueError(
            f"The config {config.name} needs {count} samples for training and validation, but seeds.teacher "
            f"has {len(seeds)} seeds; add seeds, or use fewer samples."
        )
    options = f"--seeds {format_seeds(seeds[:count])}"
    if isinstance(config.teacher_solver.steps, str):
        options += f" --student-steps {steps}"
    if config.conditions.kind == "prompt":
        options += " --prompts PROMPTS.txt"
    command = f"gas-ext teach --config {config_option(config)} {options} -o {folder}"
    return NeededFile("teacher samples", str(folder), False, f"generate them: {command}")


def _teacher_files(config: Config, folder: str) -> list[NeededFile]:
    if folder == "demo":
        return [NeededFile("teacher", "ships with the package", True)]
    present = (Path(folder) / CARD).is_file()
    remedy = f"import it: {import_command(config, folder)}"
    if config.teacher.kind == "custom":
        remedy += "; or pass a Denoiser to train in Python"
    imported = _needed("teacher", Path(folder), present, remedy)
    if config.teacher.file is None or present:
        return [imported]
    weights = find_weights(config)
    path = weights or weights_folder() / config.name / config.teacher.file
    size = f" (about {config.teacher.megabytes} MB)" if config.teacher.megabytes else ""
    download = f"download {config.teacher.address or config.teacher.file}{size}"
    return [_needed("weights", path, weights is not None, download), imported]


def _needed(what: str, path: str | Path, present: bool, remedy: str) -> NeededFile:
    return NeededFile(what, str(path), present, "" if present else remedy)


def _perceptual_loss(extra: str) -> NeededFile:
    package = "lpips" if extra == "lpips" else "efficientnet_lite_pytorch"
    present = find_spec(package) is not None
    return _needed("perceptual loss", f"package {package}", present, f"pip install 'gas_ext[{extra}]'")


def _discriminator(name: str) -> Sequence[NeededFile]:
    if name.endswith(".safetensors"):
        return [_needed("discriminator", name, Path(name).is_file(), "write it with save_discriminator")]
    if name not in _DISCRIMINATORS:
        return [NeededFile("discriminator", "random initialization", True)]
    path = weights_folder() / f"{name}.pkl"
    present = path.is_file() or path.with_suffix(".safetensors").is_file()
    remedy = f"download the {_DISCRIMINATORS[name]} published at https://github.com/brownvc/R3GAN"
    return [_needed("discriminator", path, present, remedy)]
