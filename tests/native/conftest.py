import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parent.parent / "csrc" / "kernels"
ON_X86 = platform.machine() in ("x86_64", "AMD64")
SETS = ("x86_64_v3", "x86_64_v4") if ON_X86 else ("plain",)
SANITIZERS = {"asan": "address,undefined", "tsan": "thread"}


def _commands(compiler: str, sanitizer: str, folder: Path) -> tuple[list[list[str]], list[str]]:
    """Commands that compile the driver and each set's kernels, as CMake but at -O1, and one that links."""
    common = [compiler, "-std=c++20", "-O1", "-g1", "-ffp-contract=off", "-fno-math-errno"]
    common += [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-I", str(KERNELS), "-c"]
    jobs = [[str(HERE / "cpu_kernels.cpp")], [str(KERNELS / "fused_update_cpu_dispatch.cpp")]]
    for name in SETS:
        march = [f"-march={name.replace('_', '-')}"] if ON_X86 else []
        jobs.append([str(KERNELS / "fused_update_cpu.cpp"), f"-DGAS_EXT_ISA={name}", *march])
    objects = [str(folder / f"{i}.o") for i in range(len(jobs))]
    compiles = [[*common, *job, "-o", made] for job, made in zip(jobs, objects, strict=True)]
    return compiles, [
        compiler,
        f"-fsanitize={sanitizer}",
        "-pthread",
        *objects,
        "-o",
        str(folder / "program"),
    ]


@pytest.fixture(scope="session")
def cpu_kernels(pytestconfig) -> Callable[[str], Path]:
    """Return what builds the driver under a sanitizer, or finds it in pytest's cache."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not here")
    sources = [*sorted(KERNELS.glob("*.h")), *sorted(KERNELS.glob("*.cpp")), *sorted(HERE.iterdir())]
    version = subprocess.run([compiler, "--version"], capture_output=True).stdout
    texts = [path.read_bytes() for path in sources if path.is_file()]
    digest = hashlib.sha256(b"".join([version, *texts])).hexdigest()
    cache = Path(pytestconfig.cache.mkdir("cpu_kernels"))

    def build(name: str) -> Path:
        target = cache / f"{name}-{digest[:16]}"
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=cache) as folder:
                compiles, link = _commands(compiler, SANITIZERS[name], Path(folder))
                with ThreadPoolExecutor(os.cpu_count()) as pool:
                    list(pool.map(_run, compiles))
                _run(link)
                os.replace(Path(folder) / "program", target)
        return target

    return build


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")
