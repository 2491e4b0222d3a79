"""Checks of arguments that many functions share; each raises an error of one sentence."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def whole_number(name: str, value: Any, low: int | None = None) -> int:
    """Return an integer as an int; TypeError if it is not one, ValueError if it is below `low`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}, but must be an integer; pass an int.") from None
    if low is not None and number < low:
        raise ValueError(f"{name} is {number}, but must be at least {low}.")
    return number


def real_number(name: str, value: Any) -> float:
    """Return a number, or a tensor or array of one, as a float; infinity if float64 cannot hold it."""
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        return float(value)
    except OverflowError:
        return math.inf
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} is {value!r}, but must be a single number; convert it.") from None


def flag(name: str, value: Any) -> bool:
    """Return True or False; TypeError for anything else, as "no" would count as True."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is {value!r}, but must be True or False.")
    return bool(value)


def whole_numbers(name: str, values: Any) -> list[int]:
    """Return integers as a list; TypeError unless they are a one-dimensional sequence of integers."""
    if isinstance(values, Tensor):
        values = values.tolist()
    if not isinstance(values, Iterable):
        raise TypeError(f"{name} is {values!r}, but must be a sequence of integers.")
    return [whole_number(f"An entry of {name}", value) for value in values]


def float64_table(name: str, values: Any) -> Tensor:
    """Return numbers as a float64 tensor on the CPU, without gradient; TypeError if they are not numbers."""
    if isinstance(values, Tensor):
        return values.detach().to("cpu", torch.float64)
    try:
        return torch.as_tensor(values, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} is {values!r:.80}, but must be a sequence of numbers.") from None


def path_of(name: str, value: Any) -> Path:
    """Return a path as a Path; TypeError if it is not one."""
    try:
        return Path(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}, but must be a path; pass a str or a Path.") from None


def default_device() -> torch.device:
    """Return the device where torch puts new parameters; the CPU instead of "meta", which has no values."""
    device = torch.get_default_device()
    return torch.device("cpu") if device.type == "meta" else device


def check_dense(name: str, value: Any, remedy: str = "convert it") -> None:
    """Raise TypeError unless the value is a dense tensor: not sparse, not nested."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}, but must be a tensor; {remedy}.")
    if value.layout != torch.strided or value.is_nested:
        layout = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
        raise TypeError(f"{name} is {layout}, but must be a dense tensor; {remedy}.")
