"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch

    from gas_ext._utils.progress import Reporter
    from gas_ext._utils.seeds import SeedList
    from gas_ext.configs import Config
    from gas_ext.denoisers import Denoiser
    from gas_ext.solvers.coefficients import Solver

ConfigName = Annotated[
    str,
    typer.Option(
        "--config",
        "-c",
        help="Name of a config (cifar10, ffhq, ..., demo) or a YAML file, such as a run's config.yaml.",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        help="Device to compute on: cpu, cuda, cuda:N, or auto (cuda if there is a GPU, otherwise cpu)."
    ),
]
Teacher = Annotated[
    str | None,
    typer.Option(
        help="Folder of an imported teacher, or 'demo'.", show_default="teachers/NAME of the config"
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        help="Class labels such as 0-9,3, or a file of them; the list repeats if there are more seeds.",
        show_default="seed modulo number of classes",
    ),
]
Prompts = Annotated[
    Path | None,
    typer.Option(
        help="UTF-8 file with one prompt per line; the list repeats if there are more seeds. An empty line "
        "is the empty prompt."
    ),
]
Autocast = Annotated[
    str | None,
    typer.Option(help="Run the network in float16 or bfloat16.", show_default="the network's precision"),
]
Override = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a config value, e.g. training.ema=0.99 or student.t_eps=0.01 (repeatable).",
    ),
]


def examples(*commands: str) -> str:
    """Return the epilog of a command's help: one example per line."""
    return "\n\n".join(["Examples:", *commands])


def check_device(device: str) -> str:
    """Return the name of a usable device, resolving "auto"; ValueError if this machine does not have it.

    MPS is not supported: it has no float64, in which times and coefficients are computed.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        parsed = torch.device(device)
    except RuntimeError:
        raise ValueError(f"Device {device!r} is unknown; use --device cpu, cuda, cuda:N or auto.") from None
    if parsed.type not in ("cpu", "cuda"):
        raise ValueError(f"Device {device!r} is not supported; use --device cpu, cuda, cuda:N or auto.")
    if parsed.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (parsed.index or 0) >= count:
            available = "cpu" + (f", or cuda:0 to cuda:{count - 1}" if count else "")
            raise ValueError(
                f"Device {device!r} is not available, torch sees {count} CUDA devices; use --device "
                f"{available}."
            )
    return device


def local_device(device: str) -> str:
    """Return the device of this process: under torchrun, cuda means the GPU of its LOCAL_RANK."""
    from gas_ext._utils.processes import Launch

    device = check_device(device) if device == "auto" else device
    local_rank = Launch.read().local_rank
    if device == "cuda" and local_rank is not None:
        device = f"cuda:{local_rank}"
    return check_device(device)


def reporter_on(device: str) -> Reporter:
    """Return a reporter that names the device when the first task begins."""
    import torch

    from gas_ext._utils.progress import make_reporter

    name = f" ({torch.cuda.get_device_name(device)})" if device.startswith("cuda") else ""
    return make_reporter(f"device: {device}{name}")


def load_teacher_of(config: Config, teacher: str | None, device: str) -> Denoiser:
    """Load the teacher of a config; ValueError if it is not imported or does not match the config."""
    from gas_ext.teachers.folder import CARD, import_command, load_teacher, teacher_folder

    source, teacher = config.teacher, teacher or teacher_folder(config)
    if teacher != "demo" and not (Path(teacher) / CARD).is_file():
        needs = f", which needs {source.file} ({source.megabytes} MB) from {source.address}"
        raise ValueError(
            f"There is no imported teacher in {teacher}; run {import_command(config, teacher)}"
            f"{needs if source.file else ''}."
        )
    denoiser = load_teacher(teacher, device)
    for name, found, expected in (
        ("sample shape", denoiser.sample_shape, config.space.shape),
        ("condition type", denoiser.condition_kind, config.conditions.kind),
        ("number of classes", denoiser.num_classes, config.conditions.num_classes),
    ):
        if found != expected:
            raise ValueError(
                f"The teacher {denoiser.name} has {name} {found}, but the config {config.name} has "
                f"{expected}; give the teacher of this config with --teacher."
            )
    return denoiser


def load_with_solver(folder: str, name: str, steps: int | None, device: str) -> tuple[Denoiser, Solver]:
    """Load a teacher without a config, and build a solver for it by name, both on the device."""
    import torch

    from gas_ext.solvers.registry import build_solver
    from gas_ext.teachers.folder import load_teacher

    denoiser = load_teacher(folder, device)
    solver = build_solver(name, denoiser.schedule, steps, denoiser.t_eps)
    return denoiser, solver.to(device) if isinstance(solver, torch.nn.Module) else solver


def read_autocast(name: str | None) -> torch.dtype | None:
    """Return the dtype that --autocast names."""
    from gas_ext.training.settings import AUTOCAST

    if name is None:
        return None
    if name not in AUTOCAST:
        raise ValueError(f"autocast is {name!r}; expected float16 or bfloat16.")
    return AUTOCAST[name]


def read_labels(text: str | None) -> SeedList | None:
    """Read labels such as "0-9,3", or those in a file, separated by commas or white space."""
    from gas_ext._utils.seeds import parse_seeds

    if text is None:
        return None
    try:
        if os.path.isfile(text):  # Path.is_file raises if a long list of labels cannot be a file name
            text_of_file = Path(text).read_text(encoding="utf-8")
            return parse_seeds(",".join(text_of_file.replace(",", " ").split()))
        return parse_seeds(text)
    except ValueError:
        raise ValueError(
            f"Cannot read labels from {text[:40]!r}; give a list such as 0-9,3, or a file of them."
        ) from None


def read_prompts(path: Path | None) -> list[str] | None:
    """Read one prompt per line; a newline at the end of the file does not add a prompt."""
    if path is None:
        return None
    if not path.is_file():
        raise ValueError(f"There is no file of prompts {path}.")
    try:
        text = path.read_text(encoding="utf-8-sig")  # with or without a byte order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); convert it first.") from error
    return text.removesuffix("\n").split("\n") if text else []
