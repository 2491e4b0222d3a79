"""The hash of the C++ sources: a build stores it, so that a build of other sources is noticed.

setup.py runs this file alone; it imports nothing of the package.
"""

from __future__ import annotations

import hashlib
from pathlib import Path


def hash_sources(root: Path) -> str:
    """Return the hash of csrc/ and CMakeLists.txt in `root`; empty if they are missing, as when installed."""
    recipe = root / "CMakeLists.txt"  # another project's, unless csrc/ exists too
    if not recipe.is_file() or not (root / "csrc" / "python" / "build_info.cpp").is_file():
        return ""
    digest = hashlib.sha256()
    sources = (path for path in root.glob("csrc/*/*") if path.suffix in (".cpp", ".cu", ".cuh", ".h"))
    for path in [recipe, *sorted(sources)]:
        digest.update(path.relative_to(root).as_posix().encode() + b"\n")
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
