"""Libraries that only some teachers need."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Import a module of an optional dependency.

    Parameters
    ----------
    module : str
        What to import, e.g. "diffusers" or "diffusers.loaders".
    extra : str
        The extra of gas_ext that installs it.

    Raises
    ------
    ImportError
        If it is not installed; the message names the extra.

    Examples
    --------
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
