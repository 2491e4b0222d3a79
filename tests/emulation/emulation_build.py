"""Compiles the CUDA-on-CPU layer with the kernels into Python modules, one for each build; caches them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pybind11
from build_cache import cached, hash_of, run, run_all

HERE = Path(__file__).resolve().parent
LAYER = HERE / "cuda_on_cpu"
CSRC = HERE.parent.parent / "csrc" / "kernels"
MODULE = "emulated_cuda"

# Compiled alike for all builds; never instrumented, so that the sanitizers judge the kernels alone.
LAYER_SOURCES = [LAYER / "fiber.cpp", LAYER / "scheduler.cpp", LAYER / "device_memory.cpp"]
MODULE_SOURCE = HERE / "module.cpp"
KERNEL_SOURCES = [HERE / "emulated_kernels.cpp", HERE / "planted_kernels.cu"]

# Every fused multiply-add is explicit in the kernels: none may be made of a product and a sum. One section
# for each variable, so that the linker script finds the shared ones.
KERNEL_FLAGS = ["-O1", "-g1", "-ffp-contract=off", "-fdata-sections", "-Wno-unknown-pragmas"]
CHECKS = "-fsanitize=alignment,null,bounds,object-size"


@dataclass(frozen=True)
class Build:
    """How the kernels are compiled, and what the interpreter must load before such a module."""

    name: str
    define: str = ""
    instrument: tuple[str, ...] = ()
    link: tuple[str, ...] = ()
    extra_sources: tuple[Path, ...] = ()
    runtimes: tuple[str, ...] = ()
    options: tuple[tuple[str, str], ...] = ()


BUILDS = {
    "plain": Build(
        "plain",
        instrument=(CHECKS, "-fno-sanitize-recover=all"),
        extra_sources=(LAYER / "undefined_behavior.cpp",),
    ),
    "asan": Build(
        "asan",
        define="-DCUDA_ON_CPU_ASAN",
        instrument=("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
        link=("-fsanitize=address,undefined",),
        runtimes=("libasan.so", "libubsan.so"),
        options=(
            # Python itself leaks, and gives up no memory at its end.
            ("ASAN_OPTIONS", "detect_leaks=0:detect_stack_use_after_return=0"),
            ("UBSAN_OPTIONS", "print_stacktrace=1"),
        ),
    ),
    "tsan": Build(
        "tsan",
        define="-DCUDA_ON_CPU_TSAN",
        instrument=("-fsanitize=thread",),
        link=("-fsanitize=thread",),
        runtimes=("libtsan.so",),
        options=(("TSAN_OPTIONS", "halt_on_error=1:exitcode=66:report_bugs=1"),),
    ),
}


def compiler() -> str:
    """Return g++; the sanitizers and the linker script are GNU's."""
    found = shutil.which(os.environ.get("CUDA_ON_CPU_CXX", "g++"))
    if found is None:
        raise RuntimeError("no g++ was found; install it (Debian: apt-get install g++)")
    return found


def build(name: str) -> Path:
    """Compile the module of one build, or find it in the cache."""
    chosen = BUILDS[name]
    file = f"{MODULE}{sysconfig.get_config_var('EXT_SUFFIX')}"
    return cached(file, _digest(chosen), lambda folder: _compile(chosen, folder))


def load(path: Path) -> ModuleType:
    """Import a compiled module from its file."""
    spec = importlib.util.spec_from_file_location(MODULE, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sanitized_python(name: str) -> tuple[list[str], dict[str, str]]:
    """Return command and environment of a Python that can load the module of a sanitized build."""
    chosen = BUILDS[name]
    # libstdc++ too: AddressSanitizer looks for its __cxa_throw when the program starts.
    libraries = [_library(runtime) for runtime in (*chosen.runtimes, "libstdc++.so.6")]
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(HERE.parent),
        **dict(chosen.options),
    }
    # Without address-space randomization: on some systems it is too wide for ThreadSanitizer's shadow memory.
    # `env` sets LD_PRELOAD for Python alone, not for setarch.
    command = ["setarch", "-R", "env", "LD_PRELOAD=" + " ".join(libraries), sys.executable]
    return command, environment


def _library(name: str) -> str:
    path = _output([compiler(), f"-print-file-name={name}"])
    if not os.path.isabs(path):
        raise RuntimeError(
            f"{name} is missing; install the sanitizer runtimes of g++ (libasan, libtsan, ...)"
        )
    return os.path.realpath(path)


def _compile(chosen: Build, folder: Path) -> Path:
    common = [compiler(), "-std=c++20", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    if chosen.define:
        common.append(chosen.define)
    include = [f"-I{LAYER}", f"-I{HERE}", f"-I{CSRC}"]
    python = [f"-isystem{pybind11.get_include()}", f"-isystem{sysconfig.get_paths()['include']}"]
    hidden = ["-O1", "-fvisibility=hidden", f"-DEMULATION_MODULE={MODULE}"]
    commands = [
        [*common, *hidden, *include, *python, "-c", str(MODULE_SOURCE)],
        *(
            [*common, *KERNEL_FLAGS, *chosen.instrument, *include, "-x", "c++", "-c", str(source)]
            for source in KERNEL_SOURCES
        ),
        *([*common, "-O2", *include, "-c", str(s)] for s in (*LAYER_SOURCES, *chosen.extra_sources)),
    ]
    objects = [folder / (Path(command[-1]).stem + ".o") for command in commands]
    run_all([*c, "-o", str(o)] for c, o in zip(commands, objects, strict=True))
    target = folder / "module.so"
    script = f"-Wl,-T,{LAYER / 'shared_memory.ld'}"
    run([compiler(), "-shared", *chosen.link, script, *map(str, objects), "-o", str(target)])
    return target


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _digest(chosen: Build) -> str:
    """Hash of all that the module is made of: sources, flags and compilers."""
    files = [path for folder in (HERE, LAYER, CSRC) for path in folder.iterdir() if path.is_file()]
    versions = [_output([compiler(), "--version"]), sys.version, pybind11.__version__, repr(chosen)]
    suffixes = {".h", ".cpp", ".cu", ".cuh", ".ld"}
    return hash_of(versions, [p for p in files if p.suffix in suffixes or p.name == Path(__file__).name])
