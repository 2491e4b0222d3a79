"""Files that are complete or absent, and their checksums."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

_CHUNK = 1 << 22


def write_file(path: Path, data: bytes | memoryview) -> None:
    """Write a file that appears, or changes, only when it is complete; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~umask())  # mkstemp lets only the owner read
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def temporary_path(path: Path) -> Path:
    """Name beside `path` under which a file is written before `os.replace` puts it in place."""
    return path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")


def file_hash(path: Path) -> str:
    """Return the SHA-256 (hex) of a file of any size."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def umask() -> int:
    """Return the process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
