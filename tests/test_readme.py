"""The README's Python runs, and its tables match the package."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from docs_runner import ROOT, Page

README = Page("README.md")
INSTALL = Page("docs/install.md")


def test_there_are_examples() -> None:
    assert len(README.blocks) >= 2


@pytest.mark.parametrize("block", README.blocks, ids=lambda block: block.strip().splitlines()[-1][:40])
def test_example_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    README.run_block(block)


def test_switches_are_those_of_setup_py() -> None:
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    for name in re.findall(r"\b(GAS_EXT_[A-Z_]+|CUDACXX|CUDA_HOME|CXX|MAX_JOBS)\b", setup):
        assert f"`{name}`" in INSTALL.text, name


def test_readme_is_short() -> None:
    assert len(README.text.splitlines()) <= 150


def test_layout_is_that_of_the_package() -> None:
    layout = README.text[README.text.index("<!-- layout -->") : README.text.index("<!-- end layout -->")]
    rooms = re.findall(r"^\| `(\w+)` \|", layout, re.MULTILINE)
    contract = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("layers = [")[1].split("]")[0]
    assert rooms[::-1] == [name for name in re.findall(r'"(\w+)"', contract) if name != "__main__"]
    package = ROOT / "gas_ext"
    found = {
        path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert set(rooms) == found - {"__init__", "__main__"}
