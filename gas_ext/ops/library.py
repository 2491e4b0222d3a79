"""Loading of the compiled operators, and information about them.

Importing the package always works: if an operator library cannot be loaded, the reason is stored for
`gas-ext info`, and the pure-torch reference runs instead, with one warning.
"""

from __future__ import annotations

import platform
import warnings
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

import torch

from gas_ext.ops.sources import hash_sources

PACKAGE = Path(__file__).resolve().parent.parent
ROOT = PACKAGE.parent  # a clone of the repository, or site-packages


@dataclass(frozen=True)
class LoadStatus:
    """Whether an operator library is in use, and why not."""

    loaded: bool
    reason: str  # empty when loaded


def build_info() -> dict[str, Any]:
    """Return what the compiled extension was built from and with; empty without one.

    Returns
    -------
    dict
        Versions (package, compiler, CMake, torch headers, CUDA toolkit), CUDA architectures, and the CPU
        instruction sets compiled, supported by this processor and in use; None if none can be used.
    """
    module = _compiled_info()
    if isinstance(module, str):
        return {}
    info: dict[str, Any] = dict(module.build_info())
    try:
        info["cpu_isa_in_use"] = module.cpu_isa_in_use()
    except RuntimeError:
        info["cpu_isa_in_use"] = None
    return info


@cache
def _compiled_info() -> Any:
    """Return the compiled module with the build information, or the reason why there is none."""
    # Not imported by name: the finder of an editable install would find another clone's module.
    spec = PathFinder.find_spec("gas_ext._build_info", [str(PACKAGE)])
    if spec is None or spec.loader is None:
        return f"{PACKAGE} has no _build_info for Python {platform.python_version()}"
    try:
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        return f"_build_info in {PACKAGE} could not be loaded: {error}"
    return module


def _fault(name: str) -> str:
    """Return why a library of this package must not be loaded; empty if it may."""
    sources = hash_sources(ROOT)
    install = f"run 'pip install .' or 'pip install -e .' in {ROOT}, which needs a C++ compiler"
    remedy = install if sources else "reinstall gas_ext"
    if not (PACKAGE / name).exists():
        hides = ", a source folder that hides any installed gas_ext" if sources else ""
        return f"{name} is not in {PACKAGE}{hides}; {remedy}"
    module = _compiled_info()
    if isinstance(module, str):
        return f"{module}; {remedy}"
    if sources and module.build_info().get("sources") != sources:
        return f"{name} in {PACKAGE} was not built from the sources in {ROOT / 'csrc'}; {remedy}"
    return ""


def _load(name: str) -> LoadStatus:
    path = PACKAGE / name
    if fault := _fault(name):
        return LoadStatus(False, fault)
    try:
        torch.ops.load_library(str(path))  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError) as error:
        return LoadStatus(False, f"{name} could not be loaded with torch {torch.__version__}: {error}")
    return LoadStatus(True, "")


def _load_cpu() -> LoadStatus:
    status = _load("_ops_cpu.so")
    module = _compiled_info()
    if status.loaded:
        try:
            module.cpu_isa_in_use()
        except RuntimeError as error:  # GAS_EXT_CPU_ISA names none of them, or this processor is too old
            status = LoadStatus(False, str(error))
    if not status.loaded:
        warnings.warn(
            f"gas_ext runs on its slower pure-torch reference: {status.reason}", RuntimeWarning, stacklevel=2
        )
    return status


def _load_cuda(cpu: LoadStatus) -> LoadStatus:
    if not cpu.loaded:
        return cpu  # the schemas are registered by the CPU library
    if torch.version.cuda is None:
        return LoadStatus(False, f"torch {torch.__version__} is a CPU build; install a CUDA build of torch")
    toolkit = build_info().get("cuda_toolkit", "")
    if not toolkit:
        return LoadStatus(
            False, "this installation was built without CUDA; rebuild with nvcc on PATH and GAS_EXT_CUDA=1"
        )
    if int(toolkit.split(".")[0]) > int(torch.version.cuda.split(".")[0]):
        return LoadStatus(
            False,
            f"the CUDA operators were built with CUDA {toolkit}, newer than torch's {torch.version.cuda}; "
            "rebuild them with CUDACXX set to an nvcc of torch's release",
        )
    return _load("_ops_cuda.so")


# Loaded once, at import, so that torch.compile sees plain constants.
CPU_STATUS = _load_cpu()
CUDA_STATUS = _load_cuda(CPU_STATUS)


@cache
def warn_without_cuda() -> None:
    """Warn once why tensors on a GPU are updated by plain torch operations."""
    warnings.warn(
        f"gas_ext updates CUDA tensors by its slower pure-torch reference: {CUDA_STATUS.reason}",
        RuntimeWarning,
        stacklevel=3,
    )


def has_kernels(device: torch.device) -> bool:
    """Whether compiled kernels serve tensors on `device`.

    >>> has_kernels(torch.device("meta"))
    False
    """
    if device.type == "cpu":
        return CPU_STATUS.loaded
    return device.type == "cuda" and CUDA_STATUS.loaded


def info() -> dict[str, Any]:
    """Return the build information with the state of both operator libraries in this process."""
    return {
        "build": build_info(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "libraries": str(PACKAGE),
        "cuda_available": torch.cuda.is_available(),
        "cpu_operators": _describe(CPU_STATUS),
        "cuda_operators": _describe(CUDA_STATUS),
    }


def _describe(status: LoadStatus) -> str:
    return "loaded" if status.loaded else f"not loaded: {status.reason}"
