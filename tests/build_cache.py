"""Files that tests compile or unpack, cached in build/tests under the hash of their sources."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / "build" / "tests"


def hash_of(texts: Iterable[str], files: Iterable[Path]) -> str:
    """Hash texts (versions, flags), and the names and contents of files in any order."""
    digest = hashlib.sha256("\n".join(texts).encode())
    for path in sorted(files):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def cached(name: str, digest: str, make: Callable[[Path], Path]) -> Path:
    """Return the file or folder CACHE/digest/name; where it is missing, make(empty folder) makes it."""
    target = CACHE / digest / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            made = make(Path(folder))
            try:
                os.replace(made, target)
            except OSError:  # another process has made the folder first
                if not target.exists():
                    raise
    return target


def run_all(commands: Iterable[Sequence[str]]) -> None:
    """Run compile commands side by side; raise with the messages of one that fails."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(run, commands))


def run(command: Sequence[str]) -> None:
    """Run one command; raise with its messages if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stderr}")
