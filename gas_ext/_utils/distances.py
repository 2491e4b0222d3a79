"""Distances between samples and the teacher's samples from the same noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gas_ext._utils.checks import check_dense, real_number


def finite_or_none(value: float | None) -> float | None:
    """Return the value if it is a finite number, else None, since JSON has no NaN.

    >>> finite_or_none(0.5), finite_or_none(float("nan"))
    (0.5, None)
    """
    return value if value is not None and math.isfinite(value) else None


def l1_distance(samples: Tensor, reference: Tensor) -> float:
    """Mean absolute difference of two batches, accumulated in float64.

    Examples
    --------
    >>> l1_distance(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.5]))
    0.25
    """
    return float(_some(_difference(samples, reference)).abs().mean())


def l2_distance(samples: Tensor, reference: Tensor) -> float:
    """Mean squared difference of two batches, accumulated in float64.

    Examples
    --------
    >>> l2_distance(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.5]))
    0.125
    """
    return float(_some(_difference(samples, reference)).square().mean())


def psnr(samples: Tensor, reference: Tensor, data_range: float = 2.0) -> float:
    """Mean over the batch of `psnr_values`, in dB.

    Examples
    --------
    >>> round(psnr(torch.zeros(1, 4), torch.full((1, 4), 0.2)), 3)
    20.0
    """
    return float(_some(psnr_values(samples, reference, data_range)).mean())


def l1_distances(samples: Tensor, reference: Tensor) -> Tensor:
    """Mean absolute difference of each pair, shape ``(B,)`` in float64.

    Examples
    --------
    >>> l1_distances(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 0.5]]))
    tensor([0.2500], dtype=torch.float64)
    """
    return _each(_difference(samples, reference).abs())


def l2_distances(samples: Tensor, reference: Tensor) -> Tensor:
    """Mean squared difference of each pair, shape ``(B,)`` in float64.

    Examples
    --------
    >>> l2_distances(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 0.5]]))
    tensor([0.1250], dtype=torch.float64)
    """
    return _each(_difference(samples, reference).square())


def psnr_values(samples: Tensor, reference: Tensor, data_range: float = 2.0) -> Tensor:
    """Peak signal-to-noise ratio of each pair, ``10 log10(data_range^2 / mean squared difference)`` in dB.

    Parameters
    ----------
    samples, reference : Tensor
        ``(B, ...)``, neither clipped nor rounded.
    data_range : float
        Largest minus smallest value of the data. Default: 2, for images in [-1, 1].

    Returns
    -------
    Tensor
        ``(B,)`` in float64; infinite for equal samples.

    Examples
    --------
    >>> psnr_values(torch.zeros(1, 4), torch.full((1, 4), 0.2)).round(decimals=3)
    tensor([20.], dtype=torch.float64)
    """
    if not 0 < real_number("data_range", data_range) < math.inf:
        raise ValueError(f"data_range is {data_range}, but must be finite and greater than 0.")
    return 10 * (data_range**2 / l2_distances(samples, reference)).log10()


@torch.no_grad()
def _difference(samples: Tensor, reference: Tensor) -> Tensor:
    check_pair(samples, reference)
    return samples.double() - reference.double()


def _each(differences: Tensor) -> Tensor:
    if differences.ndim == 0:
        raise ValueError("The samples are a single number, but need a batch dimension; add one in front.")
    return differences.flatten(1).mean(dim=1)


def _some(values: Tensor) -> Tensor:
    if values.numel() == 0:
        raise ValueError("There are no samples, and their mean would be NaN; give at least one.")
    return values


def check_pair(samples: Tensor, reference: Tensor) -> None:
    """Raise TypeError or ValueError unless these are two dense tensors of one shape."""
    check_dense("The samples", samples)
    check_dense("The reference", reference)
    if samples.shape != reference.shape:
        raise ValueError(
            f"The samples have shape {tuple(samples.shape)} and the reference {tuple(reference.shape)}; "
            "give one reference for each sample."
        )
