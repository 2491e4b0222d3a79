"""Loading of the operators, the build information, and the fallback without a compiled extension."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

import gas_ext
from gas_ext.ops import library
from gas_ext.ops.sources import hash_sources

PACKAGE = Path(gas_ext.__file__).parent
ROOT = Path(__file__).resolve().parents[2]


def test_build_info_names_versions_and_instruction_sets() -> None:
    build = library.build_info()
    assert build["version"] == gas_ext.__version__
    assert build["torch_target"] == "2.13"
    assert build["compiler"]
    assert set(build["cpu_isas_supported"]) <= set(build["cpu_isas_compiled"])
    assert build["cpu_isa_in_use"] in build["cpu_isas_supported"]


def test_info_is_json_with_the_state_of_both_operator_libraries() -> None:
    info = json.loads(json.dumps(library.info()))
    assert info["cpu_operators"] == "loaded"
    assert info["torch"] == torch.__version__
    assert info["libraries"] == str(PACKAGE)
    built_with_cuda = bool(info["build"]["cuda_toolkit"])
    if built_with_cuda and torch.version.cuda is not None:
        assert info["cuda_operators"] == "loaded"
    else:
        assert info["cuda_operators"].startswith("not loaded: ")


def test_cuda_operators_are_registered_when_loaded() -> None:
    registered = torch._C._dispatch_has_kernel_for_dispatch_key("gas_ext::fused_update", "CUDA")
    assert registered == library.CUDA_STATUS.loaded


def run_in_copy(
    package: Path, code: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh process that imports the copy of the package in `package`."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=package.parent,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


def copy_without(tmp_path: Path, pattern: str) -> Path:
    """Copy the package to an empty folder, less the files that match."""
    ignored = shutil.ignore_patterns(pattern, "__pycache__", "weights")
    return Path(shutil.copytree(PACKAGE, tmp_path / "gas_ext", ignore=ignored))


UPDATE = """
import json, torch
from gas_ext import ops
x = torch.ones(2, 3, requires_grad=True)
row = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.5, 2.0], dtype=torch.float64)
ops.fused_update([x], 4 * x, row).state.sum().backward()
print(json.dumps([x.grad.tolist(), ops.info()["cpu_operators"], ops.info()["cuda_operators"]]))
"""


@pytest.mark.process
def test_without_a_compiled_extension_the_reference_runs_with_one_warning(tmp_path: Path) -> None:
    done = run_in_copy(copy_without(tmp_path, "*.so"), UPDATE)
    assert done.returncode == 0, done.stderr
    gradient, cpu, cuda = json.loads(done.stdout)
    assert gradient == [[4.0] * 3] * 2
    assert cpu == f"not loaded: _ops_cpu.so is not in {tmp_path / 'gas_ext'}; reinstall gas_ext"
    assert cuda == cpu
    assert done.stderr.count("pure-torch reference") == 1


def copy_clone(tmp_path: Path, pattern: str = "") -> Path:
    """Copy the package with the sources of its compiled extension, as in a clone."""
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    shutil.copy(ROOT / "CMakeLists.txt", tmp_path)
    return copy_without(tmp_path, pattern)


@pytest.mark.process
@pytest.mark.parametrize(
    ("pattern", "edited", "expected"),
    [
        ("", False, "loaded"),
        (
            "",
            True,
            "not loaded: _ops_cpu.so in {0}/gas_ext was not built from the sources in {0}/csrc",
        ),
        ("_build_info*", False, "not loaded: {0}/gas_ext has no _build_info for Python"),
        (
            "*.so",
            False,
            "not loaded: _ops_cpu.so is not in {0}/gas_ext, a source folder that hides any installed",
        ),
    ],
)
def test_a_clone_uses_a_build_of_its_own_sources_alone(
    tmp_path: Path, pattern: str, edited: bool, expected: str
) -> None:
    package = copy_clone(tmp_path, pattern)
    if edited:
        (tmp_path / "csrc" / "ops" / "tensors.h").open("a").write("// edited\n")
    done = run_in_copy(package, UPDATE)
    assert done.returncode == 0, done.stderr
    gradient, cpu, _ = json.loads(done.stdout)
    assert gradient == [[4.0] * 3] * 2
    assert cpu.startswith(expected.format(tmp_path))
    if cpu != "loaded":
        assert f"run 'pip install .' or 'pip install -e .' in {tmp_path}" in cpu
        assert done.stderr.count("pure-torch reference") == 1


@pytest.mark.process
def test_benchmarks_refuse_to_measure_the_reference(tmp_path: Path) -> None:
    package = copy_without(tmp_path, "*.so")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null"]
    done = subprocess.run(
        [*command, str(ROOT / "benchmarks" / "test_step.py")],
        env={**os.environ, "PYTHONPATH": str(package.parent)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: Benchmarks need the compiled operators: _ops_cpu.so is not in" in done.stderr


@pytest.mark.process
@pytest.mark.parametrize(
    ("damaged", "reason"),
    [
        ("_ops_cpu.so", "_ops_cpu.so could not be loaded with torch"),
        ("_build_info*.so", "_build_info in {0} could not be loaded: .*(invalid ELF header|too short)"),
    ],
)
def test_a_damaged_library_is_named_and_the_reference_runs(tmp_path: Path, damaged: str, reason: str) -> None:
    package = copy_without(tmp_path, "_ops_cuda.so")
    next(package.glob(damaged)).write_bytes(b"not a library")
    done = run_in_copy(package, UPDATE)
    assert done.returncode == 0, done.stderr
    _, cpu, _ = json.loads(done.stdout)
    assert re.match(f"not loaded: {reason.format(package)}", cpu)


@pytest.mark.process
def test_without_a_usable_instruction_set_the_reference_runs() -> None:
    code = UPDATE + "print(json.dumps(ops.info()['build']['cpu_isa_in_use']))"
    environment = {**os.environ, "GAS_EXT_CPU_ISA": "x86_64_v2"}
    done = run_in_copy(PACKAGE, code, environment)
    assert done.returncode == 0, done.stderr
    update, in_use = map(json.loads, done.stdout.splitlines())
    assert update[0] == [[4.0] * 3] * 2
    assert update[1].startswith("not loaded: ")
    assert "GAS_EXT_CPU_ISA is 'x86_64_v2'" in update[1]
    assert in_use is None
    assert done.stderr.count("pure-torch reference") == 1
    assert "this processor offers" in done.stderr


@pytest.mark.process
def test_cpu_operators_work_without_the_cuda_library(tmp_path: Path) -> None:
    done = run_in_copy(copy_without(tmp_path, "_ops_cuda.so"), UPDATE)
    assert done.returncode == 0, done.stderr
    gradient, cpu, cuda = json.loads(done.stdout)
    assert gradient == [[4.0] * 3] * 2
    assert cpu == "loaded"
    assert cuda.startswith("not loaded: ")


def test_the_cmake_file_of_another_project_has_no_hash(tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text("project(other)")
    assert hash_sources(tmp_path) == ""
    assert hash_sources(ROOT) != ""
