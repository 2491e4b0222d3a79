"""`gas-ext import`: published weights of every supported type, from disk or the hub, as a teacher folder."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from gas_ext._utils.files import file_hash
from gas_ext.configs import Config, config_names, load_config
from gas_ext.denoisers import Denoiser
from gas_ext.teachers import hub
from gas_ext.teachers.folder import CARD, check_new_folder, import_command, save_teacher
from gas_ext.teachers.published import DATA_SET, R3GAN, STUDENT, check_suffix, recognize

SNAPSHOT_SUFFIX = ".pkl"
CHECKPOINT_SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors")


@dataclass(frozen=True)
class ImportOptions:
    """What a file does not say about itself; the defaults fit the published models.

    Parameters
    ----------
    name : str, optional
        Identity of the teacher, written into solver files. Default: the config's, else the file's name.
    t_eps : float, optional
        Last time. Default: the config's, else 1e-3.
    guidance_scale : float, optional
        Default guidance scale of sampling. Default: the config's, else none.
    use_ema : bool, optional
        LDM and Stable Diffusion: use averaged weights if the file has both. Default: as published.
    latent_size : int
        LDM and Stable Diffusion: height and width of a latent, which the weights do not state. Default: 64.
    first_stage : path, optional
        LDM: a separate file with the first stage, if the checkpoint has none.
    tokenizer : str, optional
        Stable Diffusion from a single file: folder or hub name of the CLIP tokenizer, for prompts.
    variant : str, optional
        diffusers: which weights to load if there are several, such as "fp16".
    num_heads : int, optional
        Class-conditional LDM and Stable Diffusion: attention heads, which the weights do not state. Default:
        the config's, else those of the published models, with a warning.
    num_head_channels : int, optional
        Unconditional LDM: channels of an attention head, with defaults as for `num_heads`.
    text_heads : int, optional
        Stable Diffusion: attention heads of the text encoder, with defaults as for `num_heads`.
    steps : int, optional
        Published students: network evaluations, which must be the file's.
    teacher : str, optional
        Published students: folder of the imported teacher with the noise schedule.
    """

    name: str | None = None
    t_eps: float | None = None
    guidance_scale: float | None = None
    use_ema: bool | None = None
    latent_size: int = 64
    first_stage: str | os.PathLike[str] | None = None
    tokenizer: str | None = None
    variant: str | None = None
    num_heads: int | None = None
    num_head_channels: int | None = None
    text_heads: int | None = None
    steps: int | None = None
    teacher: str | None = None


# Options of each type of source; the loader of checkpoints refuses those of another model.
_OPTIONS = {
    "EDM snapshot": ("name", "t_eps"),
    "diffusers folder": ("name", "t_eps", "guidance_scale", "variant"),
    "checkpoint": tuple(vars(ImportOptions()).keys() - {"variant", "steps", "teacher"}),
    STUDENT: ("steps", "t_eps", "guidance_scale", "teacher"),
    DATA_SET: (),
    R3GAN: (),
}
_INSTEAD = {
    STUDENT: "a published student, not a teacher: run gas-ext import {} --config NAME -o solver.safetensors",
    DATA_SET: "a published data set, not a teacher: run gas-ext import {} --config NAME -o samples/NAME",
    R3GAN: "an R3GAN snapshot, not a teacher: read its discriminator with "
    'gas_ext.training.discriminators.load_r3gan_snapshot("{}"), or put it at weights/r3gan-cifar10.pkl (or '
    "-ffhq64.pkl) for gas-ext train --loss gas",
}


class Located(NamedTuple):
    """A source on disk, and the card's record of its origin."""

    path: Path
    record: dict[str, Any]


def import_teacher(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    options: ImportOptions | None = None,
    *,
    config: Config | None = None,
) -> Path:
    """Convert published weights into a teacher folder, which every other command takes; return the folder.

    Parameters
    ----------
    source : str or path
        The name of a config ("cifar10", see `find_weights`), a file (.pkl of EDM; .ckpt or .safetensors of
        LDM or Stable Diffusion), a folder with a diffusers model ("./cifar10" if it has the name of a
        config), or a name on the Hugging Face hub ("owner/name", "owner/name/file.ckpt").
    folder : path
        The teacher folder; must not exist, or be empty.
    options : ImportOptions, optional
        What the file does not say about itself.
    config : Config, optional
        The data set of a file: it gives name, last time and guidance scale, and its shape is checked.

    Raises
    ------
    ValueError
        If there is no such source, it is refused or damaged, differs from the config's description, or an
        option does not apply to it.
    FileNotFoundError
        If the weights of a config are missing; the message says where they are published.
    """
    check_new_folder(Path(folder))
    options = options or ImportOptions()
    if config is None and str(source) in config_names():
        config = load_config(str(source))
    located = locate(source, config, options.variant)
    source_type = source_type_of(located.path)
    if source_type in _INSTEAD:
        raise ValueError(f"{located.path} is {_INSTEAD[source_type].format(located.path)}.")
    check_options(located.path, source_type, options)
    denoiser = load_source(located.path, source_type, _completed(options, config, located.record))
    if config is not None and denoiser.sample_shape != config.space.shape:
        raise ValueError(
            f"{located.path} generates samples of shape {denoiser.sample_shape}, but the config "
            f"{config.name} describes {config.space.shape}; give the file that belongs to it."
        )
    return save_teacher(denoiser, folder, source=located.record)


def _completed(options: ImportOptions, config: Config | None, record: dict[str, Any]) -> ImportOptions:
    """Fill in defaults from a config, or from the hub."""
    defaults: dict[str, Any] = {"name": record.get("hub")}
    if config is not None:
        architecture = config.teacher.architecture or {}
        counts_channels = architecture.get("network") == "UNet2DModel"  # under the same name
        heads = "num_head_channels" if counts_channels else "num_heads"
        defaults = {
            "name": config.name,
            "t_eps": config.student.t_eps,
            "guidance_scale": config.teacher_solver.guidance_scale,
            heads: architecture.get("attention_head_dim"),
            "text_heads": 12 if config.teacher.kind == "stable-diffusion" else None,
        }
    missing = {name: value for name, value in defaults.items() if getattr(options, name) is None}
    return replace(options, **missing)


def locate(
    source: str | os.PathLike[str], config: Config | None = None, variant: str | None = None
) -> Located:
    """Find a source on disk, in the hub's cache, or on the hub; see `import_teacher`."""
    if config is not None and str(source) == config.name:
        return _of_config(config, variant)
    path = Path(source)
    if path.is_dir():
        return Located(path, {"folder": path.resolve().name})
    if path.is_file():
        return Located(path, _file_record(path))
    reference = hub.parse_hub_reference(str(source))
    file_name = path.suffix in (SNAPSHOT_SUFFIX, *CHECKPOINT_SUFFIXES)
    if reference is None or (reference[1] is None and file_name):
        raise ValueError(
            f"There is no {source}: give a file, a folder, a name on the hub (owner/name), or a config "
            f"({', '.join(config_names())})."
        )
    try:
        return _from_hub(*reference, variant)
    except ValueError as error:
        raise ValueError(f"There is no {source} on this disk; as a name on the hub: {error}") from error


def weights_folder() -> Path:
    """Return the folder of published weights: $GAS_EXT_WEIGHTS, or ./weights."""
    return Path(os.environ.get("GAS_EXT_WEIGHTS") or "weights")


def find_weights(config: Config) -> Path | None:
    """Return the published file of a config if it is in `weights_folder`, with or without a subfolder."""
    if config.teacher.file is None:
        return None
    paths = [weights_folder() / config.name / config.teacher.file]
    if config.teacher.file != "model.ckpt":  # the name that all LDM checkpoints share
        paths.append(weights_folder() / config.teacher.file)
    return next((path for path in paths if path.is_file()), None)


def missing_weights(config: Config) -> str:
    """Say in one sentence which file is missing, where it is published, its size, and where to put it."""
    teacher, by_path = config.teacher, f"give its path: {import_command(config, 'FOLDER', 'PATH')}"
    if teacher.file is None:
        return f"The config {config.name} names no file of weights for its teacher; {by_path}."
    size = f" (about {teacher.megabytes} MB)" if teacher.megabytes else ""
    address = f" from {teacher.address}" if teacher.address else ""
    return (
        f"The weights of {config.name} are not here: download {teacher.file}{size}{address} and put it at "
        f"{weights_folder() / config.name / teacher.file}, or {by_path}."
    )


def _of_config(config: Config, variant: str | None) -> Located:
    if config.teacher.kind == "embedded":
        raise ValueError(f"The teacher of {config.name} ships with the package and needs no import.")
    path = find_weights(config)
    if path is not None:
        return Located(path, {**_file_record(path), "address": config.teacher.address})
    if config.teacher.hub is not None:
        try:
            return _from_hub(config.teacher.hub, None, variant)
        except ValueError as error:
            raise FileNotFoundError(f"{missing_weights(config)} ({error})") from error
    raise FileNotFoundError(missing_weights(config))


def _from_hub(repository: str, file: str | None, variant: str | None) -> Located:
    if file is None:
        path = hub.fetch_pipeline(repository, variant=variant)
        return Located(path, {"hub": repository, "revision": path.name})
    path = hub.fetch_file(repository, file)
    return Located(path, {**_file_record(path), "file": file, "hub": repository})


def _file_record(path: Path) -> dict[str, Any]:
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": file_hash(path)}


def load_source(path: Path, source_type: str, options: ImportOptions) -> Denoiser:
    """Load the weights of a teacher; `source_type` is that of `source_type_of`."""
    values = {name: getattr(options, name) for name in _OPTIONS[source_type]}
    given = {name: value for name, value in values.items() if value is not None}
    if source_type == "checkpoint":
        from gas_ext.teachers.ldm import load_checkpoint

        return load_checkpoint(path, **given)
    if source_type == "EDM snapshot":
        from gas_ext.teachers.edm import load_edm_snapshot

        return load_edm_snapshot(path, **given)
    from gas_ext.teachers.diffusers import from_diffusers

    return from_diffusers(path, **given)


def source_type_of(path: Path) -> str:
    """Return the type of a source: one of three families of teachers, or one of `published`.

    Raises
    ------
    ValueError
        If its type is unknown, it is imported already, or its suffix does not fit its format.
    """
    if path.is_dir():
        if (path / CARD).is_file():
            raise ValueError(f"{path} is already an imported teacher; pass it as --teacher.")
        return "diffusers folder"
    if path.suffix not in (SNAPSHOT_SUFFIX, *CHECKPOINT_SUFFIXES):
        raise ValueError(
            f"{path} has an unknown type; expected {SNAPSHOT_SUFFIX} (EDM), "
            f"{', '.join(CHECKPOINT_SUFFIXES)} (LDM, Stable Diffusion), or a folder with a diffusers model."
        )
    check_suffix(path)
    return recognize(path) or ("EDM snapshot" if path.suffix == SNAPSHOT_SUFFIX else "checkpoint")


def check_options(path: Path, source_type: str, options: ImportOptions) -> None:
    """Raise ValueError if an option is given that does not apply to a source of this type."""
    for name, default in vars(ImportOptions()).items():
        if getattr(options, name) != default and name not in _OPTIONS[source_type]:
            raise ValueError(f"{path} is of type {source_type}, which takes no {name}; leave it out.")
