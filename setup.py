"""Build of the compiled part: setup.py -> CMake -> ninja. Everything else is in pyproject.toml.

Environment switches (none is needed for an ordinary build):

    GAS_EXT_CUDA         auto (default): CUDA operators where nvcc is found; 1: required; 0: never
    GAS_EXT_CUDA_ARCHS   architectures, default "80;86;89;90;100;120"; PTX is added for the last
    CUDACXX, CUDA_HOME   where nvcc is, if not on PATH
    CXX                  the C++ compiler, if not c++ / g++ / clang++
    GAS_EXT_CMAKE_ARGS   further arguments for CMake
    MAX_JOBS             parallel compile jobs
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
DEFAULT_ARCHS = "80;86;89;90;100;120"
OLDEST_CUDA = (12, 8)  # the first toolkit that knows architectures 100 and 120


def stop(sentence: str) -> None:
    """End the build with one sentence instead of a traceback."""
    raise SystemExit(f"gas_ext: {sentence}")


def require_compiler() -> None:
    """Check that there is a C++ compiler before CMake says so in forty lines."""
    wanted = os.environ.get("CXX")
    if wanted and not shutil.which(shlex.split(wanted)[0]):
        stop(f"the C++ compiler {wanted!r} named by CXX was not found; correct CXX or unset it.")
    if not wanted and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        stop("no C++ compiler was found; install one (Debian: apt-get install g++) or name it in CXX.")


def find_nvcc() -> str | None:
    """Path of nvcc from CUDACXX, CUDA_HOME or PATH; None where there is none."""
    for candidate in (os.environ.get("CUDACXX"), os.environ.get("CUDA_HOME")):
        if candidate:
            path = Path(candidate)
            nvcc = path / "bin" / "nvcc" if path.is_dir() else path
            found = shutil.which(str(nvcc))
            if found is None:
                stop(f"no nvcc at {nvcc} (from CUDACXX or CUDA_HOME); correct the variable or unset it.")
            return found
    return shutil.which("nvcc")


def nvcc_release(nvcc: str) -> tuple[int, int]:
    """Return the toolkit's (major, minor) release."""
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    match = re.search(r"release (\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def choose_nvcc() -> str | None:
    """Decide whether the CUDA operators are built, and with which nvcc."""
    switch = os.environ.get("GAS_EXT_CUDA", "auto").lower()
    if switch not in ("auto", "0", "1"):
        stop(f"GAS_EXT_CUDA is {switch!r}; give auto, 0 or 1.")
    if switch == "0":
        return None
    nvcc = find_nvcc()
    if nvcc is None:
        if switch == "1":
            stop("GAS_EXT_CUDA=1, but no nvcc was found; install the CUDA toolkit or set CUDACXX to nvcc.")
        print("gas_ext: no nvcc found, so only the CPU operators are built (set CUDACXX to change that).")
        return None
    release = nvcc_release(nvcc)
    if release < OLDEST_CUDA and "GAS_EXT_CUDA_ARCHS" not in os.environ:
        sentence = (
            f"{nvcc} is CUDA {release[0]}.{release[1]}, too old for the default architectures; "
            f"install CUDA {OLDEST_CUDA[0]}.{OLDEST_CUDA[1]} or newer, or name fewer in GAS_EXT_CUDA_ARCHS."
        )
        if switch == "1":
            stop(sentence)
        print(f"gas_ext: only the CPU operators are built: {sentence}")
        return None
    return nvcc


def choose_architectures() -> str:
    """Return the CUDA architectures as CMake wants them."""
    archs = os.environ.get("GAS_EXT_CUDA_ARCHS", DEFAULT_ARCHS)
    if not re.fullmatch(r"\d+[af]?(;\d+[af]?)*", archs):
        stop(
            f"GAS_EXT_CUDA_ARCHS is {archs!r}; give numbers joined by semicolons, such as {DEFAULT_ARCHS!r}."
        )
    return archs


class CMakeBuild(build_ext):
    """Run CMake and ninja, and install the three libraries into the package and the source folder."""

    def run(self) -> None:
        """Configure, build and install."""
        require_compiler()
        archs = choose_architectures()
        nvcc = choose_nvcc()
        try:
            import pybind11
            import torch
        except ImportError as error:
            stop(
                f"the build needs {error.name}; install torch, pybind11, cmake and ninja first "
                "or build without --no-build-isolation."
            )
        in_place = self.inplace or getattr(self, "editable_mode", False)
        # Always into the source folder too: it hides the installed package from what is started in the clone.
        packages = [
            root / "gas_ext" for root in ([ROOT] if in_place else [ROOT, Path(self.build_lib).resolve()])
        ]
        hash_sources = runpy.run_path(str(ROOT / "gas_ext" / "ops" / "sources.py"))["hash_sources"]
        build = Path(self.build_temp).resolve() / "cmake"
        torch_folder = Path(torch.__file__).parent
        arguments = [
            f"-DGAS_EXT_VERSION={self.distribution.get_version()}",
            f"-DGAS_EXT_SOURCES={hash_sources(ROOT)}",
            f"-DGAS_EXT_TORCH_INCLUDE={torch_folder / 'include'}",
            f"-DGAS_EXT_TORCH_LIB={torch_folder / 'lib'}",
            f"-DGAS_EXT_TORCH_VERSION={torch.__version__}",
            f"-DGAS_EXT_CUDA={'ON' if nvcc else 'OFF'}",
            f"-DGAS_EXT_CUDA_ARCHS={archs}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            *shlex.split(os.environ.get("GAS_EXT_CMAKE_ARGS", "")),
        ]
        if os.environ.get("CXX"):  # named again, for CMake remembers the first one
            arguments.append(f"-DCMAKE_CXX_COMPILER={shlex.split(os.environ['CXX'])[0]}")
        if nvcc:
            arguments.append(f"-DCMAKE_CUDA_COMPILER={nvcc}")
        cmake, ninja = tool("cmake"), tool("ninja")
        call(
            cmake,
            "-S",
            str(ROOT),
            "-B",
            str(build),
            "-G",
            "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            *arguments,
        )
        jobs = os.environ.get("MAX_JOBS")
        call(cmake, "--build", str(build), *(["--parallel", jobs] if jobs else []))
        for package in packages:
            for stale in package.glob("_*.so"):  # nothing of an earlier build, or for another Python, stays
                stale.unlink()
            call(cmake, "--install", str(build), "--prefix", str(package), "--strip")

    def get_outputs(self) -> list[str]:
        """List the installed libraries, so that an uninstall finds them."""
        return [str(path) for path in Path(self.build_lib, "gas_ext").glob("*.so")]


def tool(name: str) -> str:
    """Path of a build tool: the one next to this Python, else on PATH."""
    local = shutil.which(name, path=str(Path(sys.executable).parent))
    found = local or shutil.which(name)
    if found is None:
        stop(f"the build needs {name}; pip install {name}.")
    return str(found)


def call(*command: str) -> None:
    """Run one build command; its own output explains a failure."""
    if subprocess.run(command, check=False).returncode != 0:
        stop(f"'{Path(command[0]).name} {command[1]}' failed; see the compiler's messages above.")


setup(ext_modules=[Extension("gas_ext._build_info", sources=[])], cmdclass={"build_ext": CMakeBuild})
