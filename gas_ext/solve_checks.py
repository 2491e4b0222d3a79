"""What a solve checks of its noise and of the network's outputs."""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from gas_ext.checks import check_dense
from gas_ext.denoisers import Denoiser
from gas_ext.ops.fused_update import STATE_DTYPES


def check_noise(noise: Tensor, denoiser: Any) -> None:
    """Raise TypeError or ValueError unless a solve can begin with this; warn once if it is not finite."""
    check_dense("The noise", noise, "use torch.randn")
    if noise.dtype not in STATE_DTYPES:
        raise TypeError(
            f"The noise is {noise.dtype}, but must be floating point: float64, float32, float16 or bfloat16."
        )
    if noise.ndim == 0:
        raise ValueError("The noise is a single number, but needs a batch dimension; add one in front.")
    if isinstance(denoiser, Denoiser) and noise.shape[1:] != denoiser.sample_shape:
        raise ValueError(
            f"The noise has shape {tuple(noise.shape)}, but samples of {denoiser.name} have "
            f"{denoiser.sample_shape} after the batch; draw noise of that shape."
        )
    # A sum finds NaN and infinity in a hundredth of the time; it may also overflow.
    if _is_readable(noise) and not math.isfinite(noise.sum().item()) and not bool(noise.isfinite().all()):
        _warn_of_noise()


def _is_readable(noise: Tensor) -> bool:
    """Whether numbers can be looked at here and now: not those of a GPU, of a fake or of a transform."""
    if torch.compiler.is_compiling() or not noise.is_cpu or type(noise) not in (Tensor, nn.Parameter):
        return False
    return not (torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack())


@functools.cache
def _warn_of_noise() -> None:
    """Say once that noise is not finite; what comes of it is not, either."""
    warnings.warn(
        "The noise holds NaN or infinite numbers, and so will the samples; draw it with torch.randn.",
        RuntimeWarning,
        stacklevel=4,
    )


def check_device(noise: Tensor, device: torch.device) -> None:
    """Raise ValueError if noise and solver are on different devices."""
    if noise.device != device:
        raise ValueError(f"The noise is on {noise.device} and the solver on {device}; move one of them.")


def check_output(output: Any, seen: Tensor) -> None:
    """Raise TypeError or ValueError unless a network returned one output per input."""
    if not isinstance(output, Tensor):
        raise TypeError(
            f"The network returned a {type(output).__name__}, but the denoiser must return a tensor; "
            "wrap the network to return e.g. its output's .sample, or its first element."
        )
    if output.shape != seen.shape:
        raise ValueError(
            f"The network returned shape {tuple(output.shape)} for an input of shape "
            f"{tuple(seen.shape)}; it must return one output per input."
        )
