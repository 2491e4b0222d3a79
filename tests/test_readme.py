"""The README's Python runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_are_examples() -> None:
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.strip().splitlines()[-1][:40])
def test_example_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})


def test_switches_are_those_of_setup_py() -> None:
    setup = (Path(__file__).resolve().parent.parent / "setup.py").read_text(encoding="utf-8")
    for name in re.findall(r"\b(GAS_EXT_[A-Z_]+|CUDACXX|CUDA_HOME|CXX|MAX_JOBS)\b", setup):
        assert f"`{name}`" in README, name


def test_layout_is_that_of_the_package() -> None:
    root = Path(__file__).resolve().parent.parent
    layout = README[README.index("<!-- layout -->") : README.index("<!-- end layout -->")]
    rooms = re.findall(r"^\| `(\w+)` \|", layout, re.MULTILINE)
    contract = (root / "pyproject.toml").read_text(encoding="utf-8").split("layers = [")[1].split("]")[0]
    assert rooms[::-1] == [name for name in re.findall(r'"(\w+)"', contract) if name != "__main__"]
    package = root / "gas_ext"
    found = {
        path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert set(rooms) == found - {"__init__", "__main__"}
