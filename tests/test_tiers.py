"""Which tests run: the default, --all, -m, and what is named; and what the last lines say."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

MIXED = """
import pytest

def test_fast(): pass
@pytest.mark.slow
def test_slow(): pass
@pytest.mark.process
def test_process(): pass
@pytest.mark.fuzz
def test_fuzz(): pass
@pytest.mark.gpu
def test_gpu(): pass
"""
NATIVE = """
import pytest

pytestmark = pytest.mark.native
def test_native(): pass
@pytest.mark.slow
def test_native_slow(): pass
"""


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[set[str], str]]:
    """Return a function from arguments to the tests that passed, and the last lines of the output."""
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nmarkers = slow\n native\n process\n browser\n gpu\n fuzz\n"
    )
    (tmp_path / "test_mixed.py").write_text(MIXED)
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "test_native.py").write_text(NATIVE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("FAIL_WITHOUT_CUDA", raising=False)

    def main(*arguments: str) -> tuple[set[str], str]:
        capsys.readouterr()
        pytest.main(["-v", "--import-mode=importlib", "-p", "no:cacheprovider", *arguments])
        output = capsys.readouterr().out
        return set(re.findall(r"::test_(\w+) PASSED", output)), "\n".join(output.splitlines()[-2:])

    return main


@pytest.mark.slow
def test_default_says_what_is_left_out(run: Callable[..., tuple[set[str], str]]) -> None:
    ran, end = run()
    assert ran == {"fast"}
    assert end.startswith("Not run: 1 slow, 2 native, 1 process, 1 fuzz, 1 gpu.")
    assert "pytest --all" in end


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--all"], {"fast", "slow", "process", "native", "native_slow"}),
        (["-m", "slow"], {"slow", "native_slow"}),
        (["-m", "native"], {"native", "native_slow"}),
        (["-m", "fuzz"], {"fuzz"}),
        (["-m", "gpu"], {"gpu"}),
        (["-m", "not slow"], {"fast", "process", "native", "gpu"}),
        (["test_mixed.py"], {"fast", "slow", "process", "fuzz"}),
        (["test_mixed.py::test_slow"], {"slow"}),
        (["test_mixed.py::test_gpu"], {"gpu"}),
        (["kernels"], {"native", "native_slow"}),
        (["."], {"fast"}),
        ([".", "test_mixed.py"], {"fast", "slow", "process", "fuzz"}),
        (["-k", "slow"], {"slow", "native_slow"}),  # nothing would run otherwise
    ],
    ids=str,
)
def test_tiers(run: Callable[..., tuple[set[str], str]], arguments: list[str], expected: set[str]) -> None:
    assert run(*arguments)[0] == expected


@pytest.mark.slow
def test_device_brings_gpu_tests(
    run: Callable[..., tuple[set[str], str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert run()[0] == {"fast", "gpu"}
