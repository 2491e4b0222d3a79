import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from build_cache import cached, hash_of, run, run_all

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
def cpu_kernels() -> Callable[[str], Path]:
    """Return what builds the driver under a sanitizer, or finds it in the cache."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not here")
    sources = [*sorted(KERNELS.glob("*.h")), *sorted(KERNELS.glob("*.cpp")), *sorted(HERE.iterdir())]
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    digest = hash_of([version], [path for path in sources if path.is_file()])

    def make(name: str, folder: Path) -> Path:
        compiles, link = _commands(compiler, SANITIZERS[name], folder)
        run_all(compiles)
        run(link)
        return folder / "program"

    return lambda name: cached(f"cpu_kernels-{name}", digest, lambda folder: make(name, folder))
