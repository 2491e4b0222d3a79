"""Files that are complete or absent, their checksums, and checks of output folders."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CHUNK = 1 << 22


def write_file(path: Path, data: bytes | memoryview, *, replace: bool = True) -> None:
    """Write a file that appears, or changes, only when it is complete; missing folders are made.

    Without `replace`, an existing file stays as it is, even one that appeared a moment ago (on file systems
    with hard links).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~umask())  # mkstemp lets only the owner read
        if not replace:
            with contextlib.suppress(OSError):  # it exists, or there are no links here
                os.link(temporary, path)
        if replace or not path.exists():
            os.replace(temporary, path)
        else:
            os.unlink(temporary)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            name_file(error, path)
        raise


def name_file(error: OSError, path: Path) -> None:
    """Add the file to the message of an error; that of a full disk does not name it."""
    if error.errno is not None:
        error.filename, error.filename2 = str(path), None


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote this file."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*"):
        leftover.unlink(missing_ok=True)


def check_output_folder(folder: str | Path) -> Path:
    """Return `folder` as a path; ValueError unless files can be written there. Call it before long work."""
    path = Path(folder).absolute()
    nearest = next(parent for parent in (path, *path.parents) if os.path.lexists(parent))
    if not nearest.is_dir():
        found = "file" if nearest.exists() else "broken link"
        raise ValueError(f"{nearest} is a {found}; choose another output folder with --out.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"{nearest} is not writable; choose another output folder with --out.")
    return path


@contextmanager
def partial_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name in the folder of `path`; move the file into place when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        name_file(error, path)
        raise
    finally:
        partial.unlink(missing_ok=True)


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
