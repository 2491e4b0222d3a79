"""Runs the Python of the README and of the pages in docs/."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class Page:
    """A Markdown page and its Python blocks, named from the root of the repository."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = (ROOT / name).read_text(encoding="utf-8")
        self.blocks = re.findall(r"```python\n(.*?)```", self.text, re.DOTALL)

    def run(self, word: str, *, replacing: dict[str, str] | None = None, **names: Any) -> dict[str, Any]:
        """Run the one block with a word in it, shortened by replacements; return its names."""
        (block,) = [block for block in self.blocks if word in block]
        for old, new in (replacing or {}).items():
            assert old in block, f"{old} is not in {self.name}"
            block = block.replace(old, new)
        return self.run_block(block, **names)

    def run_all(self, *, replacing: dict[str, str] | None = None, **names: Any) -> dict[str, Any]:
        """Run every block in order, each with the names of those before it; return all names."""
        for old in replacing or {}:
            assert any(old in block for block in self.blocks), f"{old} is not in {self.name}"
        for block in self.blocks:
            for old, new in (replacing or {}).items():
                block = block.replace(old, new)
            names = self.run_block(block, **names)
        return names

    def run_block(self, block: str, **names: Any) -> dict[str, Any]:
        """Run a block with some names given; return all names."""
        names = {"__name__": "page", **names}
        exec(compile(block, self.name, "exec"), names)
        return names
