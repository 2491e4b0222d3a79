"""Static checks of the CUDA kernels: one compilation for each architecture, where nvcc is found."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cuda_resources
import pytest
import torch
from cuda_resources import ARCHITECTURES, BUDGET, TABLE, Kernel

import gas_ext
from gas_ext.ops import library

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(cuda_resources.find_nvcc() is None, reason="nvcc is not installed"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cubins")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_keep_their_budget(architecture: int, folder: Path) -> None:
    """No warning, no spill, no local memory, no more registers than recorded, wide loads and stores."""
    kernels = cuda_resources.measure(architecture, folder)
    budget = json.loads(BUDGET.read_text())
    registers = budget["registers"]
    same_compiler = budget["nvcc"] == cuda_resources.nvcc_release()  # another one allocates otherwise
    assert set(kernels) == set(registers)
    for name, kernel in kernels.items():
        assert kernel.spills == 0, name
        assert kernel.stack == 0, name
        assert not [i for i in kernel.instructions if i.startswith(("LDL", "STL"))], name
        assert not same_compiler or kernel.registers <= registers[name][str(architecture)], name
        assert kernel.occupancy >= 0.33, name
        check_wide_accesses(kernel)
    if same_compiler:
        check_table_row(architecture, kernels)


def check_wide_accesses(kernel: Kernel) -> None:
    """Every tensor access of the main loop moves 16 bytes (8 for a half-precision one with float)."""
    if kernel.name.startswith("sum_partials"):
        return
    loads, stores = cuda_resources.wide(kernel, "LDG"), cuda_resources.wide(kernel, "STG")
    mixed = kernel.name.split("<")[1].startswith("float, __")
    # The main loop, counted in the source. Forward loads m, m_u, x_n, and an older term (unrolled four times
    # and once for the rest); it stores D_n, x_{n+1} and y in two dtypes. Backward loads G, g and H, the parts
    # of D_n, x_{n+1}, and eight older terms; it stores dm, dm_u, dx_n and the gradients of eight older terms.
    if kernel.name.startswith("forward"):
        assert stores == (3 if mixed else 4)
        assert loads >= (6 if mixed else 8)
    else:
        assert stores == (9 if mixed else 11)
        assert loads >= (13 if mixed else 16)


def check_table_row(architecture: int, kernels: dict[str, Kernel]) -> None:
    """The table of docs/kernels.md says what was measured."""
    text = TABLE.read_text()
    column = ARCHITECTURES.index(architecture) + 1
    for name, kernel in kernels.items():
        row = re.search(rf"^\| `{re.escape(name)}` \|.*$", text, re.MULTILINE)
        assert row is not None, name
        cell = row[0].strip("|").split("|")[column].strip()
        assert cell == f"{kernel.registers}, {kernel.occupancy:.0%}", name


@pytest.mark.skipif(
    not library.build_info().get("cuda_toolkit"), reason="this installation was built without CUDA"
)
def test_binary_holds_all_architectures_and_ptx_of_the_newest() -> None:
    binary = Path(gas_ext.__file__).with_name("_ops_cuda.so")
    cuobjdump = cuda_resources.find_tool("cuobjdump")
    listed = cuda_resources.run(cuobjdump, "--list-elf", str(binary))
    built = re.findall(r"(\d+)-real", library.build_info()["cuda_architectures"])
    assert set(re.findall(r"sm_(\d+)", listed)) == set(built)
    assert f"sm_{built[-1]}" in cuda_resources.run(cuobjdump, "--list-ptx", str(binary))
    assert binary.stat().st_size < 2_000_000


def test_cuda_operators_are_registered_with_a_cuda_torch() -> None:
    if torch.version.cuda is None or not library.build_info().get("cuda_toolkit"):
        assert not library.CUDA_STATUS.loaded
    else:
        assert library.CUDA_STATUS.loaded, library.CUDA_STATUS.reason
        for name in ("fused_update", "fused_update_out", "fused_update_backward"):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"gas_ext::{name}", "CUDA")
