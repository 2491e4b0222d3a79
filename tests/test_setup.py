"""Errors of setup.py for missing requirements: one sentence, no traceback."""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from setuptools import Distribution

SWITCHES = ("GAS_EXT_CUDA", "GAS_EXT_CUDA_ARCHS", "CUDACXX", "CUDA_HOME", "CXX")
ROOT = Path(__file__).resolve().parent.parent


def build(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run setup.py's build into an empty folder."""
    folders = ["-b", str(tmp_path / "lib"), "-t", str(tmp_path / "tmp")]
    return subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", *folders],
        cwd=ROOT,
        env={**{k: v for k, v in os.environ.items() if k not in SWITCHES}, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def fake_nvcc(tmp_path: Path, release: str) -> str:
    """Write a program that answers --version as an nvcc of that release does."""
    path = tmp_path / "nvcc"
    path.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.1'\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def only_compiler(tmp_path: Path) -> str:
    """Return a folder for PATH with a compiler and no nvcc."""
    compiler = shutil.which("c++") or shutil.which("g++")
    assert compiler is not None
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "c++").symlink_to(compiler)
    return str(tmp_path / "bin")


@pytest.mark.process
@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        (lambda _: {"CXX": "no-such-compiler"}, "'no-such-compiler' named by CXX was not found"),
        (lambda tmp: {"PATH": str(tmp), "CXX": ""}, "no C++ compiler was found"),
        (lambda _: {"GAS_EXT_CUDA": "yes"}, "give auto, 0 or 1"),
        (lambda _: {"CUDACXX": "/nonexistent/nvcc"}, "no nvcc at /nonexistent/nvcc"),
        (lambda _: {"GAS_EXT_CUDA_ARCHS": "80,90"}, "give numbers joined by semicolons"),
        (lambda tmp: {"GAS_EXT_CUDA": "1", "CUDACXX": fake_nvcc(tmp, "11.8")}, "is CUDA 11.8, too old"),
        (
            lambda tmp: {"GAS_EXT_CUDA": "1", "PATH": only_compiler(tmp), "CUDACXX": "", "CUDA_HOME": ""},
            "GAS_EXT_CUDA=1, but no nvcc was found",
        ),
    ],
)
def test_each_missing_requirement_is_one_sentence(
    tmp_path: Path, environment: Callable[[Path], dict[str, str]], sentence: str
) -> None:
    done = build(tmp_path, **environment(tmp_path))
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("gas_ext: ")
    assert sentence in last
    assert not list(tmp_path.glob("lib/**/*.so"))


@pytest.mark.parametrize("in_place", [False, True])
def test_libraries_also_go_into_the_source_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_place: bool
) -> None:
    """They hide the installed package from programs started in the clone."""
    monkeypatch.setattr("setuptools.setup", lambda **arguments: None)
    spec = importlib.util.spec_from_file_location("setup_py", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def install(*command: str) -> None:
        if command[1] == "--install":
            (Path(command[command.index("--prefix") + 1]) / "_ops_cpu.so").touch()

    monkeypatch.setenv("GAS_EXT_CUDA", "0")
    monkeypatch.setattr(module, "ROOT", tmp_path / "clone")
    monkeypatch.setattr(module, "call", install)
    shutil.copytree(ROOT / "gas_ext" / "ops", tmp_path / "clone" / "gas_ext" / "ops")
    source, built = tmp_path / "clone" / "gas_ext", tmp_path / "lib" / "gas_ext"
    built.mkdir(parents=True)
    for stale in (source / "_ops_cuda.so", source / "_build_info.cpython-39.so", built / "_ops_cuda.so"):
        stale.touch()
    command = module.CMakeBuild(Distribution({"version": "1"}))
    command.build_lib, command.build_temp, command.inplace = str(tmp_path / "lib"), str(tmp_path), in_place
    command.run()
    assert [path.name for path in source.glob("*.so")] == ["_ops_cpu.so"]
    assert [path.name for path in built.glob("*.so")] == ["_ops_cuda.so" if in_place else "_ops_cpu.so"]
