"""What setup.py says when something that the build needs is missing: one sentence, no traceback."""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from setuptools import Distribution

SWITCHES = ("GAS_EXT_CUDA", "GAS_EXT_CUDA_ARCHS", "CUDACXX", "CUDA_HOME", "CXX")
ROOT = Path(__file__).resolve().parent.parent


def build(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run setup.py's build into an empty folder."""
    return subprocess.run(
        [
            sys.executable,
            "setup.py",
            "-q",
            "build_ext",
            "-b",
            str(tmp_path / "lib"),
            "-t",
            str(tmp_path / "tmp"),
        ],
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


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"CXX": "no-such-compiler"}, "'no-such-compiler' named by CXX was not found"),
        ({"GAS_EXT_CUDA": "yes"}, "give auto, 0 or 1"),
        ({"CUDACXX": "/nonexistent/nvcc"}, "no nvcc at /nonexistent/nvcc"),
        ({"GAS_EXT_CUDA_ARCHS": "80,90"}, "give numbers joined by semicolons"),
    ],
)
def test_each_missing_thing_is_one_sentence(
    tmp_path: Path, environment: dict[str, str], sentence: str
) -> None:
    done = build(tmp_path, **environment)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert last_line(done.stderr).startswith("gas_ext: ")
    assert sentence in last_line(done.stderr)
    assert not list(tmp_path.glob("lib/**/*.so"))


def test_forced_cuda_with_an_old_toolkit_is_refused(tmp_path: Path) -> None:
    done = build(tmp_path, GAS_EXT_CUDA="1", CUDACXX=fake_nvcc(tmp_path, "11.8"))
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "is CUDA 11.8, too old" in last_line(done.stderr)


def test_forced_cuda_without_nvcc_is_refused(tmp_path: Path) -> None:
    compiler = shutil.which("c++") or shutil.which("g++")
    assert compiler is not None
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "c++").symlink_to(compiler)
    done = build(tmp_path, GAS_EXT_CUDA="1", PATH=str(tmp_path / "bin"), CUDACXX="", CUDA_HOME="")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "GAS_EXT_CUDA=1, but no nvcc was found" in last_line(done.stderr)


def test_no_compiler_on_path_is_one_sentence(tmp_path: Path) -> None:
    done = build(tmp_path, PATH=str(tmp_path), CXX="")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "no C++ compiler was found" in last_line(done.stderr)


@pytest.mark.parametrize("in_place", [False, True])
def test_libraries_also_go_into_the_source_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_place: bool
) -> None:
    """It hides the installed package from what is started in the clone."""
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
