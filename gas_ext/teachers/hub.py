"""Published weights from the Hugging Face hub: from its cache where they are there, else downloaded.

`huggingface_hub` resumes broken downloads. The hub names a large file by its SHA-256, so that what lies in
the cache is checked without asking again.
"""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from gas_ext._utils.files import file_hash
from gas_ext._utils.optional import require
from gas_ext._utils.records import reason_of

# Parts of pipelines that teachers never run: they judge or describe images.
UNUSED_PARTS = ("safety_checker", "feature_extractor", "image_encoder")

_SECONDS_TO_CONNECT = 5.0
_PART = r"\w[\w.-]*"  # of a name; never ".."
_REFERENCE = re.compile(rf"(?:hf://)?({_PART}/{_PART})(?:/((?:{_PART}/)*{_PART}\.\w+))?")


def parse_hub_reference(text: str) -> tuple[str, str | None] | None:
    """Split "owner/name" or "owner/name/path/of/file.ext", with or without "hf://"; None if it is neither.

    Examples
    --------
    >>> parse_hub_reference("stabilityai/sdxl-turbo")
    ('stabilityai/sdxl-turbo', None)
    >>> parse_hub_reference("hf://owner/name/vae/model.safetensors")
    ('owner/name', 'vae/model.safetensors')
    """
    match = _REFERENCE.fullmatch(text)
    return (match[1], match[2]) if match else None


def fetch_file(repository: str, file: str, revision: str | None = None) -> Path:
    """Return the path of one file of a hub repository, downloaded unless the cache has it.

    Parameters
    ----------
    repository : str
        "owner/name".
    file : str
        Path of the file in it.
    revision : str, optional
        Branch, tag or commit.

    Raises
    ------
    ValueError
        If the hub cannot be reached, has no such file, or what is in the cache is damaged.
    ImportError
        If huggingface_hub is not installed.
    """
    hub = require("huggingface_hub", "diffusers")
    what = f"{file} of {repository}"
    arguments = {"revision": revision, "filename": file}
    path = Path(_cached_or_loaded(what, hub.hf_hub_download, repository, arguments))
    check_blob(path)
    return path


def fetch_pipeline(repository: str, revision: str | None = None, variant: str | None = None) -> Path:
    """Return the folder of a diffusers pipeline on the hub: safetensors weights and configuration alone.

    The `UNUSED_PARTS` are not downloaded.

    Parameters
    ----------
    repository : str
        "owner/name".
    revision : str, optional
        Branch, tag or commit.
    variant : str, optional
        Which weights, where there are several: "fp16" for ``*.fp16.safetensors``. A part that has none of the
        variant comes as it is.

    Raises
    ------
    ValueError, ImportError
        See `fetch_file`.
    """
    diffusers = require("diffusers", "diffusers")
    what = f"The pipeline {repository}" + (f" (variant {variant})" if variant else "")
    download = _download_pipeline(diffusers, variant)
    folder = Path(_cached_or_loaded(what, download, repository, {"revision": revision}))
    for path in sorted(folder.rglob("*.safetensors")):
        check_blob(path)
    return folder


def _download_pipeline(diffusers: Any, variant: str | None) -> Any:
    left_out = dict.fromkeys(UNUSED_PARTS)  # what is given, if only as None, is not downloaded

    def download(repository: str, **options: Any) -> Any:
        folder = diffusers.DiffusionPipeline.download(
            repository, use_safetensors=True, variant=variant, **left_out, **options
        )
        if options.get("local_files_only") and not has_variant(Path(folder), variant):
            raise OSError(f"The cache has {repository}, but not its variant {variant}.")
        return folder

    return download


def has_variant(folder: Path, variant: str | None) -> bool:
    """Say whether a folder or one in it has weights of a variant; None stands for those without a suffix."""
    return variant is None or any(folder.rglob(f"*.{variant}*.safetensors"))


def _cached_or_loaded(what: str, download: Any, repository: str, arguments: dict[str, Any]) -> Any:
    """Call a download of huggingface_hub: without the network first, and with it only if it is there."""
    try:
        return download(repository, local_files_only=True, **arguments)
    except (OSError, ValueError):  # not in the cache; both are what huggingface_hub and diffusers raise
        pass
    unreachable = _why_unreachable()
    if unreachable:
        raise ValueError(
            f"{what} is not in the cache of huggingface_hub and {unreachable}; download it on a machine with "
            "a network and give its path instead."
        )
    try:
        return download(repository, **arguments)
    except Exception as error:  # of several libraries: httpx, huggingface_hub, diffusers
        reason = reason_of(error)
        raise ValueError(f"{what} could not be downloaded from the hub: {reason}") from error


def _why_unreachable() -> str | None:
    """Say why the hub cannot be asked, within seconds: its own retries would take half a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids asking the hub"
    address = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    if getproxies().get(address.scheme):
        return None  # the proxy finds the way
    host, port = address.hostname or "", address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((host, port), timeout=_SECONDS_TO_CONNECT).close()
    except OSError:
        return f"{host} cannot be reached"
    return None


def check_blob(path: Path) -> None:
    """Compare a cached large file with the SHA-256 that it is named by; ValueError if it is damaged."""
    name = path.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", name) and file_hash(path) != name:
        raise ValueError(f"{path.resolve()} is damaged; delete it and import again.")
