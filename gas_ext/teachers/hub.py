"""Published weights from the Hugging Face hub: from its cache, else downloaded.

`huggingface_hub` resumes broken downloads. The hub names a large file by its SHA-256, so cached files are
checked without another request.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from gas_ext._utils.files import file_hash
from gas_ext._utils.optional import require
from gas_ext._utils.records import reason_of

# Parts of pipelines that teachers never use: they judge or describe images.
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


def fetch_file(repository: str, file: str) -> Path:
    """Return the path of one file of the repository "owner/name", downloaded unless it is cached."""
    hub = require("huggingface_hub", "diffusers")
    download = partial(hub.hf_hub_download, repository, filename=file)
    path = Path(_cached_or_downloaded(f"{file} of {repository}", download))
    _check_blob(path)
    return path


def fetch_pipeline(repository: str, revision: str | None = None, variant: str | None = None) -> Path:
    """Return the folder of a diffusers pipeline on the hub: safetensors weights and configuration only.

    The `UNUSED_PARTS` are not downloaded. A part without weights of the variant is loaded as it is.
    """
    pipelines = require("diffusers", "diffusers").DiffusionPipeline

    def download(local_files_only: bool = False) -> Any:
        unused = dict.fromkeys(UNUSED_PARTS)  # parts that are passed, even as None, are not downloaded
        folder = pipelines.download(
            repository,
            use_safetensors=True,
            revision=revision,
            variant=variant,
            local_files_only=local_files_only,
            **unused,
        )
        if local_files_only and not has_variant(Path(folder), variant):
            raise OSError(f"The cache has {repository}, but not its variant {variant}.")
        return folder

    what = f"The pipeline {repository}" + (f" (variant {variant})" if variant else "")
    folder = Path(_cached_or_downloaded(what, download))
    for path in sorted(folder.rglob("*.safetensors")):
        _check_blob(path)
    return folder


def has_variant(folder: Path, variant: str | None) -> bool:
    """Return whether a folder or a subfolder has weights of a variant; None means those without a suffix."""
    return variant is None or any(folder.rglob(f"*.{variant}*.safetensors"))


def _cached_or_downloaded(what: str, download: Callable[..., Any]) -> Any:
    """Call a download of huggingface_hub: from the cache first, then from the hub if it can be reached."""
    try:
        return download(local_files_only=True)
    except (OSError, ValueError):  # huggingface_hub and diffusers raise either if it is not in the cache
        pass
    unreachable = _why_unreachable()
    if unreachable:
        raise ValueError(
            f"{what} is not in the cache of huggingface_hub and {unreachable}; download it on a machine with "
            "a network and give its path instead."
        )
    try:
        return download()
    except Exception as error:  # of several libraries: httpx, huggingface_hub, diffusers
        raise ValueError(f"{what} could not be downloaded from the hub: {reason_of(error)}.") from error


def _why_unreachable() -> str | None:
    """Return why the hub cannot be reached, within seconds: its own retries would take half a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids using the hub"
    address = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    if getproxies().get(address.scheme):
        return None  # the proxy resolves the host
    host, port = address.hostname or "", address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((host, port), timeout=_SECONDS_TO_CONNECT).close()
    except OSError:
        return f"{host} cannot be reached"
    return None


def _check_blob(path: Path) -> None:
    """Compare a cached large file with the SHA-256 in its name; ValueError if it is damaged."""
    name = path.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", name) and file_hash(path) != name:
        raise ValueError(f"{path.resolve()} is damaged; delete it and import again.")
