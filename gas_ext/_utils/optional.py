"""Imports of optional dependencies."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Import a module of an optional dependency; ImportError names the extra that installs it.

    >>> require("math", "diffusers").sqrt(4.0)
    2.0
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"This needs {module}, which cannot be imported ({error}); "
            f"install it with pip install 'gas_ext[{extra}]'."
        ) from error
