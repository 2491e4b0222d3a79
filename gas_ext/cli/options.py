"""Options that several commands share, and what they mean."""

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

Device = Annotated[
    str, typer.Option(help="Where to compute: cpu, cuda or cuda:N; auto: cuda if there is a GPU, else cpu.")
]
Labels = Annotated[
    str | None,
    typer.Option(
        help="Labels such as 0-9,3, or a file of them; the i-th seed gets the i-th, from the first again "
        "when they run out. If not given: the seed modulo the number of classes."
    ),
]
Prompts = Annotated[
    Path | None,
    typer.Option(
        help="UTF-8 file with one prompt per line; the i-th seed gets line i, from the first again when they "
        "run out. An empty line is the empty prompt."
    ),
]


def check_device(device: str) -> str:
    """Return the device's name if it can be used here; auto is the best that is there.

    MPS is not among them: it has no float64, in which times and coefficients are computed.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ValueError(f"unknown device {device!r}: use --device cpu, cuda, cuda:N or auto") from None
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r} is not supported: use --device cpu, cuda or auto")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (torch.device(device).index or 0) >= count:
            instead = "cpu" + (f", or cuda:0 to cuda:{count - 1}" if count else "")
            raise ValueError(
                f"device {device!r} is not there, torch sees {count} CUDA devices: use --device {instead}"
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
    """Return a reporter that tells, when the work begins, where it is done."""
    import torch

    from gas_ext._utils.progress import make_reporter

    name = f" ({torch.cuda.get_device_name(device)})" if device.startswith("cuda") else ""
    return make_reporter(f"device: {device}{name}")


def load_teacher_of(config: Config, teacher: str | None, device: str) -> Denoiser:
    """Load the teacher of a config and make sure that it fits.

    Raises
    ------
    ValueError
        If it has not been imported, or makes samples of another shape or with other conditions.
    """
    from gas_ext.teachers.folder import CARD, import_command, load_teacher, teacher_folder

    source, teacher = config.teacher, teacher or teacher_folder(config)
    if teacher != "demo" and not (Path(teacher) / CARD).is_file():
        needs = f", which needs {source.file} ({source.megabytes} MB) from {source.address}"
        raise ValueError(
            f"There is no imported teacher in {teacher}: run {import_command(config, teacher)}"
            f"{needs if source.file else ''}."
        )
    denoiser = load_teacher(teacher, device)
    for name, has, wants in (
        ("samples of shape", denoiser.sample_shape, config.space.shape),
        ("conditions of kind", denoiser.condition_kind, config.conditions.kind),
        ("a number of classes of", denoiser.num_classes, config.conditions.num_classes),
    ):
        if has != wants:
            raise ValueError(
                f"The teacher {denoiser.name} has {name} {has}, but the config {config.name} describes "
                f"{wants}; give the teacher that belongs to it."
            )
    return denoiser


def load_with_solver(folder: str, name: str, steps: int | None, device: str) -> tuple[Denoiser, Solver]:
    """Load a teacher without a config, and build a solver for it by its name, both on the device."""
    import torch

    from gas_ext.solvers.registry import build_solver
    from gas_ext.teachers.folder import load_teacher

    denoiser = load_teacher(folder, device)
    solver = build_solver(name, denoiser.schedule, steps, denoiser.t_eps)
    return denoiser, solver.to(device) if isinstance(solver, torch.nn.Module) else solver


def read_autocast(name: str | None) -> torch.dtype | None:
    """Return the precision that --autocast names; None if it is not given.

    Examples
    --------
    >>> read_autocast("bfloat16")
    torch.bfloat16
    """
    from gas_ext.training.settings import AUTOCAST

    if name is None:
        return None
    if name not in AUTOCAST:
        raise ValueError(f"autocast is {name!r}; expected float16 or bfloat16.")
    return AUTOCAST[name]


def read_labels(text: str) -> SeedList:
    """Read labels such as "0-9,3", or those in a file, separated by commas or white space.

    Examples
    --------
    >>> read_labels("0-2,7")
    [0, 1, 2, 7]
    """
    from gas_ext._utils.seeds import parse_seeds

    try:
        if os.path.isfile(text):  # Path.is_file fails where a long list of labels is no possible name
            text_of_file = Path(text).read_text(encoding="utf-8")
            return parse_seeds(",".join(text_of_file.replace(",", " ").split()))
        return parse_seeds(text)
    except ValueError:
        raise ValueError(
            f"Cannot read labels from {text[:40]!r}: give a list such as 0-9,3, or a file of them."
        ) from None


def read_prompts(path: Path) -> list[str]:
    """Read one prompt per line; an empty line is the empty prompt, and the end of the last line no line."""
    if not path.is_file():
        raise ValueError(f"There is no file of prompts {path}.")
    try:
        text = path.read_text(encoding="utf-8-sig")  # with or without a byte order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); convert it first.") from error
    return text.removesuffix("\n").split("\n") if text else []
