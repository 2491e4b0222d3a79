"""What a training run needs and costs, said before anything is loaded: `gas-ext train --dry-run`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gas_ext._utils.seeds import format_seeds, parse_seeds
from gas_ext.configs import Config
from gas_ext.configs.base import LossKind
from gas_ext.solvers.gits import GITS_SIGMAS
from gas_ext.solvers.presets import get_kind
from gas_ext.solvers.registry import display_name
from gas_ext.teachers.folder import teacher_folder
from gas_ext.training.memory import training_bytes

# Where the commands keep things unless they are told otherwise.
SAMPLES = Path("samples")

_DISCRIMINATORS = {
    "r3gan-cifar10": "R3GAN snapshot for CIFAR-10",
    "r3gan-ffhq64": "R3GAN snapshot for FFHQ 64x64",
}


@dataclass(frozen=True)
class NeededFile:
    """Something that must be on disk.

    Parameters
    ----------
    what : str
        "weights", "teacher", "teacher samples", "perceptual loss" or "discriminator".
    place : str
        Path or package.
    present : bool
        Whether it is there.
    remedy : str
        How to get it; empty if it is there.
    """

    what: str
    place: str
    present: bool
    remedy: str = ""


@dataclass(frozen=True)
class TrainingPlan:
    """What `make_plan` found; `lines` prints it, `to_dict` makes JSON of it.

    Parameters
    ----------
    title, loss : str
        Data set, "gs" or "gas".
    files : list of NeededFile
        What must be on disk.
    teacher_solver : str
        In words.
    student_kind : str
        What of the student is learned, see `gas_ext.solvers.presets`.
    teacher_nfe, student_nfe : int
        Network evaluations per sample.
    samples : dict
        Numbers of "training" and "validation" samples.
    evaluations : dict
        Network evaluations of single samples (guidance doubles the batch) "for the teacher's samples", "in
        training" (with gradient), and "without gradient, for the discriminator" (in GAS, its fakes and what
        else it is shown).
    memory : dict or str
        Bytes, see `gas_ext.training.memory.training_bytes`; a sentence where they cannot be told.
    """

    title: str
    loss: LossKind
    files: list[NeededFile]
    teacher_solver: str
    student_kind: str
    teacher_nfe: int
    student_nfe: int
    samples: dict[str, int]
    evaluations: dict[str, int]
    memory: dict[str, int] | str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @property
    def ready(self) -> bool:
        """Whether every file is present."""
        return all(file.present for file in self.files)

    def lines(self) -> list[str]:
        """Return the plan as text."""
        parts = [f"{self.title}", f"loss: {self.loss.upper()}", "", "files"]
        for file in self.files:
            state = "present" if file.present else "absent "
            parts.append(f"  {state}  {file.what + ':':17} {file.place}")
            if file.remedy:
                parts.append(f"           {'':17} {file.remedy}")
        parts += [
            "",
            f"teacher: {self.teacher_solver}, NFE {self.teacher_nfe}",
            f"student: {'' if self.student_kind == 'gs' else get_kind(self.student_kind).title + ', '}"
            f"NFE {self.student_nfe}",
            "samples: " + ", ".join(f"{count:,} for {use}" for use, count in self.samples.items()),
            "network evaluations: "
            + ", ".join(f"{count:,} {use}" for use, count in self.evaluations.items() if count),
            "memory: " + self._memory(),
        ]
        return parts

    def _memory(self) -> str:
        if isinstance(self.memory, str):
            return self.memory
        parts = [f"{name} {size / 1e9:.2f} GB" for name, size in self.memory.items() if name != "total"]
        left_out = "the loss's network" + (" and the discriminator" if self.loss == "gas" else "")
        return f"about {self.memory['total'] / 1e9:.2f} GB ({', '.join(parts)}), without {left_out}"


def make_plan(
    config: Config,
    loss: LossKind = "gs",
    steps: int | None = None,
    *,
    teacher: str | Path | None = None,
    samples: str | Path | None = None,
) -> TrainingPlan:
    """Say what training a solver for a config needs and costs; nothing is loaded.

    Parameters
    ----------
    config : Config
        The data set.
    loss : str
        "gs" (distillation) or "gas" (with the adversarial term).
    steps : int, optional
        Network evaluations of the student; the config's first if not given.
    teacher, samples : path, optional
        Folders of the imported teacher and of its samples, if not in their usual places.

    Raises
    ------
    ValueError
        If the teacher has no times for so many steps, or the config has fewer seeds than samples.

    Examples
    --------
    >>> from gas_ext.configs import load_config
    >>> plan = make_plan(load_config("cifar10"), steps=6)
    >>> plan.teacher_nfe, plan.samples
    (20, {'training': 1400, 'validation': 1000})
    """
    steps = steps or config.student.steps[0]
    counts = {
        "training": config.training.train_samples_for(loss),
        "validation": config.training.validation_samples,
    }
    nfe = config.teacher_solver.steps_for(steps)
    if config.teacher_solver.timesteps == "gits" and nfe not in GITS_SIGMAS:
        raise ValueError(
            f"The teacher of {config.name} takes {nfe} steps for a student of {steps}, but there are GITS "
            f"times for {', '.join(map(str, GITS_SIGMAS))} steps alone; choose others with --steps."
        )
    drawn = config.training.iterations_for(loss) * config.training.batch_size
    # Of evaluations for the discriminator's view, see TeacherView, those of the student's samples have a
    # gradient; those of the fakes, and twice of the teacher's samples, have none.
    shown = len(config.adversarial.noise_levels) if loss == "gas" and config.adversarial else 0
    return TrainingPlan(
        config.title,
        loss,
        _files(config, loss, steps, sum(counts.values()), teacher, samples),
        _describe(config),
        config.student.kind,
        nfe,
        steps,
        counts,
        {
            "for the teacher's samples": sum(counts.values()) * nfe,
            "in training": drawn * (steps + shown),
            "without gradient, for the discriminator": drawn * (steps + 3 * shown) if loss == "gas" else 0,
        },
        _memory(config, steps, shown),
    )


def samples_folder(config: Config, steps: int) -> Path:
    """Return where its samples are: samples/NAME, or NAME-N if the teacher depends on the student's steps."""
    depends = isinstance(config.teacher_solver.steps, str)
    return SAMPLES / (f"{config.name}-{steps}" if depends else config.name)


def _describe(config: Config) -> str:
    solver = config.teacher_solver
    scale = f", guidance {solver.guidance_scale}" if solver.guidance_scale is not None else ""
    return f"{display_name(solver.name)} to {solver.t_eps:g}{scale}"


def _memory(config: Config, steps: int, shown: int) -> dict[str, int] | str:
    """Return what one part of a batch holds at a time, as `training.accumulation` cuts it.

    Its graph has the `steps` evaluations of the solve, and `shown` of the discriminator's view.
    """
    training = config.training
    part = training.model_copy(update={"batch_size": -(-training.batch_size // training.accumulation)})
    config = config.model_copy(update={"training": part})
    try:
        found = training_bytes(config, steps + shown)
    except (ImportError, ValueError) as error:
        return f"not known ({' '.join(str(error).split())})"
    if training.recompute:  # the activations of one evaluation at a time
        kept = found["activations"] // (steps + shown)
        found = {**found, "activations": kept, "total": found["total"] - found["activations"] + kept}
    return found


def _files(
    config: Config,
    loss: LossKind,
    steps: int,
    count: int,
    teacher: str | Path | None,
    samples: str | Path | None,
) -> list[NeededFile]:
    files = _teacher_files(config, str(teacher or teacher_folder(config)))
    files.append(_teacher_samples(config, steps, count, Path(samples or samples_folder(config, steps))))
    if config.training.loss in ("lpips", "perceptual"):
        files.append(_perceptual_loss(config.training.loss))
    if loss == "gas" and config.adversarial is not None:
        files += _discriminator(config.adversarial.discriminator)
    return files


def _teacher_samples(config: Config, steps: int, count: int, folder: Path) -> NeededFile:
    """Look whether there are enough samples, or say how to make them."""
    from gas_ext.samples import TeacherSamples
    from gas_ext.samples.manifest import MANIFEST
    from gas_ext.teachers.sources import config_option

    remedy = ""
    if (folder / MANIFEST).is_file():
        try:
            samples = TeacherSamples.open(folder)
        except ValueError as error:
            remedy = str(error)
        else:
            if len(samples) < count:
                grows = samples.settings["solver"] is not None
                others = "training makes the others" if grows else "name another one with --samples"
                remedy = f"it holds {len(samples)} of {count} samples; {others}"
        return NeededFile("teacher samples", str(folder), not remedy, remedy)
    seeds = parse_seeds(config.seeds.teacher)
    if len(seeds) < count:
        raise ValueError(
            f"The config {config.name} wants {count} samples for training and validation, but has only "
            f"{len(seeds)} seeds for them (seeds.teacher); give more seeds or take fewer samples."
        )
    options = f"--seeds {format_seeds(seeds[:count])}"
    if isinstance(config.teacher_solver.steps, str):
        options += f" --student-steps {steps}"
    if config.conditions.kind == "prompt":
        options += " --prompts PROMPTS.txt"
    command = f"gas-ext teach --config {config_option(config)} {options} -o {folder}"
    return NeededFile("teacher samples", str(folder), False, f"make them: {command}")


def _teacher_files(config: Config, folder: str) -> list[NeededFile]:
    from gas_ext.teachers.folder import CARD
    from gas_ext.teachers.sources import find_weights, import_command, weights_folder

    if folder == "demo":
        return [NeededFile("teacher", "ships with the package", True)]
    if config.teacher.kind == "custom":
        return [NeededFile("teacher", "made in Python", True)]
    card = Path(folder) / CARD
    imported = _needed("teacher", card, f"import it: {import_command(config, folder)}")
    if config.teacher.file is None or imported.present:
        return [imported]
    found = find_weights(config)
    place = found or weights_folder() / config.name / config.teacher.file
    size = f" (about {config.teacher.megabytes} MB)" if config.teacher.megabytes else ""
    download = f"download {config.teacher.address or config.teacher.file}{size}"
    return [NeededFile("weights", str(place), found is not None, "" if found else download), imported]


def _needed(what: str, path: Path, remedy: str) -> NeededFile:
    there = path.is_file()
    return NeededFile(what, str(path.parent), there, "" if there else remedy)


def _perceptual_loss(extra: str) -> NeededFile:
    from importlib.util import find_spec

    package = "lpips" if extra == "lpips" else "efficientnet_lite_pytorch"
    there = find_spec(package) is not None
    return NeededFile(
        "perceptual loss", f"package {package}", there, "" if there else f"pip install 'gas_ext[{extra}]'"
    )


def _discriminator(name: str) -> Sequence[NeededFile]:
    if name.endswith(".safetensors"):
        there = Path(name).is_file()
        return [NeededFile("discriminator", name, there, "" if there else "write it: save_discriminator")]
    if name not in _DISCRIMINATORS:
        return [NeededFile("discriminator", "random initialization", True)]
    from gas_ext.teachers.sources import weights_folder

    path = weights_folder() / f"{name}.pkl"
    there = path.is_file() or path.with_suffix(".safetensors").is_file()
    remedy = f"download the {_DISCRIMINATORS[name]} published at https://github.com/brownvc/R3GAN"
    return [NeededFile("discriminator", str(path), there, "" if there else remedy)]
