"""Published files that are not teachers: their recognition, and the import of published students."""

from __future__ import annotations

import os
from pathlib import Path

from gas_ext._utils.files import check_output_folder, file_hash
from gas_ext.configs import Config
from gas_ext.safe_pickle import PickledObject, read_pickle, read_torch_archive
from gas_ext.schedules import NoiseSchedule
from gas_ext.solvers.generalized import GeneralizedSolver
from gas_ext.teachers.folder import CARD, import_command, load_teacher, read_card, teacher_folder

STUDENT = "student"
DATA_SET = "data set"
R3GAN = "R3GAN snapshot"

_STREAM_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # of torch.save's older, single-stream form
_LARGEST_STUDENT = 2**24  # bytes; published ones have a few kB, and no large checkpoint is read twice
_FORMATS = {".pkl": "a plain pickle", ".ckpt": "a torch.save file", ".safetensors": "a safetensors file"}


def check_suffix(path: Path) -> None:
    """Raise ValueError if a file's suffix belongs to another format than its first bytes."""
    with open(path, "rb") as file:
        start = file.read(len(_STREAM_START))
    if start.startswith((b"PK", _STREAM_START)):
        form = ".ckpt"
    elif start.startswith(b"\x80"):
        form = ".pkl"
    elif start[8:9] == b"{":
        form = ".safetensors"
    else:
        return
    suffix = path.suffix
    if form != (suffix if suffix in _FORMATS else ".ckpt"):  # .pt and .pth are torch.save's too
        raise ValueError(f"{path} ends in {suffix}, but is {_FORMATS[form]}; rename it to end in {form}.")


def recognize(path: Path) -> str | None:
    """Return `STUDENT`, `DATA_SET` or `R3GAN`; None for a teacher, or what cannot be read."""
    try:
        if path.suffix == ".pkl":
            content = read_pickle(path, tensors=False)
        elif path.stat().st_size <= _LARGEST_STUDENT and path.suffix != ".safetensors":
            content = read_torch_archive(path, tensors=False)
        else:
            return None
    except ValueError:
        return None  # the loader says why
    if not isinstance(content, dict):
        return None
    averages, network = content.get("ema"), content.get("D")
    if isinstance(averages, dict) and "shadow_params" in averages:
        return STUDENT
    if {"noise", "latents", "images", "condition"} <= content.keys():
        return DATA_SET
    return R3GAN if isinstance(network, PickledObject) and network.name == "Discriminator" else None


def import_student(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    config: Config,
    *,
    steps: int | None = None,
    t_eps: float | None = None,
    guidance_scale: float | None = None,
    teacher: str | None = None,
) -> GeneralizedSolver:
    """Convert a student published with the GS/GAS paper (.pt) into a solver file, which names no teacher.

    `config` gives schedule, last time and guidance scale, unless they are given; the schedule is that of the
    imported teacher in the folder `teacher` (by default teachers/NAME, if it exists), else the published one.
    ValueError if the file is not a student, has other steps, or the schedule is unknown.
    """
    out = Path(out)
    if out.suffix != ".safetensors" or out.is_dir():
        raise ValueError(f"{path} is a published student, so -o {out} must be a file ending in .safetensors.")
    check_output_folder(out.parent)
    schedule, prediction_type = _schedule_of(config, teacher)
    solver = GeneralizedSolver.from_reference_checkpoint(
        path,
        schedule,
        steps,
        config.student.t_eps if t_eps is None else t_eps,
        prediction_type=prediction_type,
        guidance_scale=config.teacher_solver.guidance_scale if guidance_scale is None else guidance_scale,
    )
    solver.save(out, training={"published": Path(path).name, "sha256": file_hash(Path(path))})
    return solver


def _schedule_of(config: Config, teacher: str | None) -> tuple[NoiseSchedule, str]:
    """Return schedule and prediction type of a data set's teacher: as imported, or as published."""
    from gas_ext.teachers.edm.teacher import default_schedule

    folder = teacher or teacher_folder(config)
    if folder == "demo":
        demo = load_teacher(folder)
        return demo.schedule, demo.prediction_type
    if teacher is not None or (Path(folder) / CARD).is_file():
        card = read_card(Path(folder))
        return NoiseSchedule.from_dict(card["schedule"]), card["prediction_type"]
    if config.teacher.kind == "edm":
        return default_schedule("EDMPrecond", config.student.t_eps), "sample"
    raise ValueError(
        f"The noise schedule of {config.name} is stored with the weights of its teacher: run "
        f"{import_command(config, folder)} first, or name its folder with --teacher."
    )
