"""Imported teachers: one folder of safetensors files with a JSON card that names and checks every file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from gas_ext._utils.files import check_output_folder, file_hash, name_file, umask
from gas_ext._utils.records import (
    COUNT,
    RECORD,
    TEXT,
    Field,
    Fields,
    check_record,
    parse_json,
    reason_of,
    shown,
)
from gas_ext.configs import Config, config_names
from gas_ext.denoisers import Denoiser
from gas_ext.teachers.defaults import plain_defaults

TEACHERS = Path("teachers")
CARD = "teacher.json"
FORMAT_VERSION = 1

# family -> the class that loads it
FAMILIES = {
    "edm": "gas_ext.teachers.edm:EDMTeacher",
    "ldm": "gas_ext.teachers.ldm:LatentTeacher",
    "diffusers": "gas_ext.teachers.diffusers:DiffusersTeacher",
}


_FILE: Fields = {"bytes": COUNT, "sha256": TEXT}
_FIELDS: Fields = {
    **dict.fromkeys(("family", "name", "weights_hash"), TEXT),
    "config": RECORD,
    "files": Field((dict,), each=Field((dict,), inside=_FILE)),
}


def save_teacher(
    denoiser: Denoiser, folder: str | os.PathLike[str], *, source: Mapping[str, Any] | None = None
) -> Path:
    """Save a teacher to a folder, which appears only when it is complete, and return the folder.

    Parameters
    ----------
    denoiser : Denoiser
        A teacher of one of the `FAMILIES`. Its `weights_hash` is set to that of the files.
    folder : path
        Must not exist, or be empty; a symbolic link is followed.
    source : mapping, optional
        Origin of the weights (file name, size, SHA-256, address), for the card.

    Raises
    ------
    ValueError
        If the folder is not empty or cannot be created.
    TypeError
        If the family cannot be saved to a folder.
    """
    folder = Path(folder)
    check_new_folder(folder)
    target = folder.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        config = denoiser.save_weights(partial)
        files = _describe_files(partial)
        denoiser.weights_hash = weights_hash_of(files)
        card = {
            "format_version": FORMAT_VERSION,
            "family": denoiser.family,
            "name": denoiser.name,
            "weights_hash": denoiser.weights_hash,
            "prediction_type": denoiser.prediction_type,
            "sample_shape": list(denoiser.sample_shape),
            "condition_kind": denoiser.condition_kind,
            "num_classes": denoiser.num_classes,
            "schedule": denoiser.schedule.to_dict(),
            "t_eps": denoiser.t_eps,
            "guidance_scale": denoiser.guidance_scale,
            "source": dict(source or {}),
            "config": config,
            "files": files,
        }
        (partial / CARD).write_text(json.dumps(card, indent=2) + "\n")
        for path in (partial, *partial.rglob("*")):  # mkdtemp and safetensors create them for the owner alone
            path.chmod((0o777 if path.is_dir() else 0o666) & ~umask())
        if target.exists():
            target.rmdir()  # it is empty
        os.replace(partial, target)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            name_file(error, folder)
        if isinstance(error, SafetensorError):  # such as for a full disk
            raise OSError(f"{folder} could not be written: {error}.") from error
        raise
    return folder


def check_new_folder(folder: Path) -> None:
    """Raise ValueError if a new folder exists and is not empty, or cannot be created."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists already; name a new folder or empty it first.")
    target = folder.resolve()
    if target == Path.cwd():
        raise ValueError(f"{folder} is the current folder, which cannot be replaced; name a new one.")
    check_output_folder(target.parent)


@plain_defaults()
def load_teacher(
    folder: str | os.PathLike[str], device: str | torch.device = "cpu", *, verify: bool = True
) -> Denoiser:
    """Load an imported teacher, frozen and in evaluation mode.

    Parameters
    ----------
    folder : path
        A folder of `save_teacher` or ``gas-ext import``; "demo" is the embedded teacher.
    device : device
        Device of the teacher.
    verify : bool
        Compare every file with the SHA-256 on the card (about a second per gigabyte).

    Raises
    ------
    ValueError
        If the card or a file is missing or damaged, or the family is unknown.

    Examples
    --------
    >>> load_teacher("demo").name
    'fashion-mnist-32'
    """
    if str(folder) == "demo":
        from gas_ext.teachers.demo import load_demo_teacher

        return load_demo_teacher(device)
    folder = Path(folder)
    card = read_card(folder)
    check_files(folder, card, contents=verify)
    module, name = FAMILIES[card["family"]].split(":")
    cls: type[Denoiser] = getattr(import_module(module), name)
    try:
        teacher = cls.load_weights(folder, card["config"])
    except (ArithmeticError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder / CARD} is damaged: its config does not fit {cls.__name__} "
            f"({type(error).__name__}: {reason_of(error)}); import the teacher again."
        ) from error
    except (ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder} cannot be used: {reason_of(error)}; import the teacher again.") from error
    teacher.name = card["name"]
    teacher.weights_hash = card["weights_hash"]
    return teacher.requires_grad_(False).eval().to(device)


def read_card(folder: Path) -> dict[str, Any]:
    """Read the card of a teacher folder; ValueError if it is missing or damaged."""
    path = folder / CARD
    if not path.is_file():
        raise ValueError(f"{folder} holds no imported teacher ({CARD} is missing); run gas-ext import first.")
    card = parse_json(path.read_bytes(), path)
    if not isinstance(card, dict) or card.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"{path} is not a card of format {FORMAT_VERSION}; import the teacher again.")
    check_record(card, _FIELDS, path)
    if card["family"] not in FAMILIES:
        raise ValueError(
            f"{path} names the family {shown(card['family'])}; expected one of {', '.join(FAMILIES)}."
        )
    return card


def check_files(folder: Path, card: Mapping[str, Any], contents: bool = True) -> None:
    """Raise ValueError unless every file on the card exists and has its size and, optionally, its SHA-256."""
    for name, entry in card["files"].items():
        path = folder / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise ValueError(f"The card of {folder} names {name!r}, which is outside the folder.")
        if not path.is_file():
            raise ValueError(f"{path} is missing; import the teacher again.")
        if path.stat().st_size != entry["bytes"] or (contents and file_hash(path) != entry["sha256"]):
            raise ValueError(
                f"{path} is damaged: it differs from the card's description; import the teacher again."
            )
    if weights_hash_of(card["files"]) != card["weights_hash"]:
        raise ValueError(f"The card of {folder} contradicts itself (weights_hash); import the teacher again.")


def _describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": file_hash(path)}
        for path in paths
    }


def weights_hash_of(files: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the identity of a folder of weights: SHA-256 over the names and hashes of its safetensors files.

    Configuration is excluded: other versions of a library write it with other keys.
    """
    digest = hashlib.sha256()
    for name in sorted(name for name in files if name.endswith(".safetensors")):
        digest.update(f"{name} {files[name]['sha256']}\n".encode())
    return digest.hexdigest()


def teacher_folder(config: Config) -> str:
    """Return the default folder of a config's teacher: "demo", or teachers/NAME."""
    return "demo" if config.teacher.kind == "embedded" else str(TEACHERS / config.name)


def import_command(config: Config, folder: str | os.PathLike[str], source: str | None = None) -> str:
    """Return the command that imports the teacher of a config, from a given source or the published one.

    The source is the placeholder SOURCE if the config names no published weights.

    Examples
    --------
    >>> from gas_ext.configs import load_config
    >>> import_command(load_config("cifar10"), "teachers/cifar10")
    'gas-ext import cifar10 -o teachers/cifar10'
    """
    shipped = config.name in config_names()
    option = f" --config {config_option(config)}" if source or not shipped else ""
    if source is None:
        published = shipped or config.teacher.file is not None or config.teacher.hub is not None
        source = config.name if published else "SOURCE"
    return f"gas-ext import {source}{option} -o {folder}"


def config_option(config: Config) -> str:
    """Return the value of --config for a config: its name, or a placeholder for its file."""
    return config.name if config.name in config_names() else "CONFIG.yaml"
