"""What nvcc makes of the CUDA kernels: registers, spills, occupancy and memory instructions, without a GPU.

``python tests/static/cuda_resources.py`` measures every architecture and rewrites the table of
docs/kernels.md and the budget file that test_cuda_resources.py compares with.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "csrc" / "kernels" / "fused_update_cuda.cu"
BUDGET = Path(__file__).with_name("budget.json")
TABLE = ROOT / "docs" / "kernels.md"
ARCHITECTURES = (80, 86, 89, 90, 100, 120)
BLOCK_THREADS = 256

_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass
class Kernel:
    """Resources of one kernel on one architecture."""

    name: str
    registers: int = 0
    stack: int = 0
    spills: int = 0
    shared: int = 0
    occupancy: float = 0.0
    instructions: Counter[str] = field(default_factory=Counter)


def find_nvcc() -> str | None:
    """Path of nvcc, or None."""
    return shutil.which(os.environ.get("CUDACXX") or "nvcc")


def nvcc_release() -> str:
    """Release of nvcc, such as 13.0; registers differ between releases."""
    nvcc = find_nvcc()
    match = re.search(r"release (\d+\.\d+)", run(nvcc, "--version")) if nvcc else None
    return match[1] if match else "0.0"


def find_tool(name: str) -> str:
    """Path of cuobjdump or nvdisasm: from PATH, or from its PyPI package."""
    found = shutil.which(name)
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or [] if spec else []:
        for candidate in Path(folder).glob(f"**/bin/{name}"):
            found = found or str(candidate)
    if found is None:
        raise FileNotFoundError(f"{name} was not found; pip install nvidia-cuda-{name}.")
    return found


def run(*command: str, **options: object) -> str:
    """Standard output and error of a command that must succeed."""
    environment = {**os.environ, "PATH": os.pathsep.join([*map(_folder, ("nvdisasm",)), os.environ["PATH"]])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, **options)  # type: ignore[call-overload]
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return str(done.stdout + done.stderr)


def _folder(tool: str) -> str:
    return str(Path(find_tool(tool)).parent)


def short_name(mangled: str) -> str:
    """forward_kernel<float, __half> from the mangled name."""
    name = run("c++filt", mangled).strip()
    match = re.search(r"(\w+_kernel<[^>]*>)", name)
    return match[1] if match else name


def measure(architecture: int, folder: Path) -> dict[str, Kernel]:
    """Compile for one architecture, with warnings as errors, and read what ptxas and the SASS say."""
    nvcc = find_nvcc()
    assert nvcc is not None
    cubin = folder / f"sm_{architecture}.cubin"
    log = run(
        nvcc, "-std=c++20", "-O3", "-Xptxas", "-v,-warn-spills,-warn-lmem-usage", "-Xcompiler", "-Wall",
        "-Werror", "all-warnings", f"-arch=sm_{architecture}", "-cubin", str(SOURCE), "-o", str(cubin),
    )  # fmt: skip
    kernels: dict[str, Kernel] = {}
    current = Kernel("")
    for line in log.splitlines():
        if match := _ENTRY.search(line):
            current = kernels[match[1]] = Kernel(short_name(match[1]))
        elif match := _STACK.search(line):
            current.stack, current.spills = int(match[1]), int(match[2]) + int(match[3])
        elif match := _USED.search(line):
            current.registers = int(match[1])
            shared = _SHARED.search(line)
            current.shared = int(shared[1]) if shared else 0
    mangled = ""
    for line in run(find_tool("cuobjdump"), "-sass", str(cubin)).splitlines():
        if match := re.search(r"Function : (\w+)", line):
            mangled = match[1]
        elif match := re.search(r"\b((?:LD|ST)[GL]\.E[.\w]*|LDL[.\w]*|STL[.\w]*)", line):
            kernels[mangled].instructions[match[1]] += 1
    calculator = build_calculator(folder, nvcc)
    for kernel in kernels.values():
        numbers = map(str, (architecture, kernel.registers, kernel.shared, BLOCK_THREADS))
        blocks, threads = map(int, run(str(calculator), *numbers).split())
        kernel.occupancy = blocks * BLOCK_THREADS / threads
    return {kernel.name: kernel for kernel in kernels.values()}


def build_calculator(folder: Path, nvcc: str) -> Path:
    """Compile occupancy.cpp against the toolkit's header."""
    calculator = folder / "occupancy"
    if not calculator.exists():
        toolkit = Path(nvcc).resolve().parent.parent
        candidates = [toolkit, *toolkit.glob("targets/*"), Path("/usr/local/cuda")]
        include = next(p / "include" for p in candidates if (p / "include" / "cuda_occupancy.h").exists())
        run("c++", f"-I{include}", str(Path(__file__).with_name("occupancy.cpp")), "-o", str(calculator))
    return calculator


def wide(kernel: Kernel, prefix: str) -> int:
    """Count the instructions that move 128 bits."""
    return sum(n for name, n in kernel.instructions.items() if name.startswith(prefix) and ".128" in name)


def table(measured: dict[int, dict[str, Kernel]]) -> str:
    """Markdown: registers and occupancy of every kernel on every architecture."""
    lines = ["| kernel | " + " | ".join(f"sm_{a}" for a in ARCHITECTURES) + " |"]
    lines.append("|---" * (len(ARCHITECTURES) + 1) + "|")
    for name in sorted(measured[ARCHITECTURES[0]]):
        cells = (f"{measured[a][name].registers}, {measured[a][name].occupancy:.0%}" for a in ARCHITECTURES)
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, and rewrite the budget and the table."""
    with tempfile.TemporaryDirectory() as folder:
        measured = {a: measure(a, Path(folder)) for a in ARCHITECTURES}
    registers = {
        name: {str(a): measured[a][name].registers for a in ARCHITECTURES}
        for name in sorted(measured[ARCHITECTURES[0]])
    }
    budget = {"nvcc": nvcc_release(), "registers": registers}
    BUDGET.write_text(json.dumps(budget, indent=2) + "\n")
    before, _, rest = TABLE.read_text().partition("<!-- resources -->\n")
    _, _, after = rest.partition("<!-- end resources -->")
    TABLE.write_text(f"{before}<!-- resources -->\n{table(measured)}\n<!-- end resources -->{after}")


if __name__ == "__main__":
    main()
