"""From a raw network F to a denoiser D(y; sigma) = c_skip y + c_out F(c_in y; c_noise)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Scales(NamedTuple):
    """The four functions of the noise level sigma (Karras et al. 2022, table 1), float64 like sigma."""

    skip: Tensor
    out: Tensor
    into: Tensor
    noise: Tensor


def vp_scales(sigma: Tensor) -> Scales:
    """Variance preserving (DDPM++): the noise label is 999 times the time of the linear-beta schedule."""
    beta_d, beta_min = 19.9, 0.1
    root = torch.sqrt(beta_min**2 + 2.0 * beta_d * torch.log1p(sigma**2))
    noise = 999.0 * (root - beta_min) / beta_d
    return Scales(torch.ones_like(sigma), -sigma, torch.rsqrt(sigma**2 + 1.0), noise)


def ve_scales(sigma: Tensor) -> Scales:
    """Variance exploding (NCSN++)."""
    one = torch.ones_like(sigma)
    return Scales(one, sigma, one, torch.log(0.5 * sigma))


def edm_scales(sigma: Tensor) -> Scales:
    """EDM: unit variance of input and training target at every noise level."""
    sigma_data = 0.5
    norm = torch.sqrt(sigma**2 + sigma_data**2)
    return Scales((sigma_data / norm) ** 2, sigma * sigma_data / norm, 1.0 / norm, torch.log(sigma) / 4.0)


class Preconditioning(NamedTuple):
    """Scales, the range of noise levels that the network declares, and the published constants of both."""

    scales: Callable[[Tensor], Scales]
    sigma_min: float
    sigma_max: float
    constants: Mapping[str, float]


def _vp_sigma(t: float) -> float:
    return math.sqrt(math.expm1(0.5 * 19.9 * t**2 + 0.1 * t))


# By the class names of the published files.
PRECONDITIONINGS = {
    "VPPrecond": Preconditioning(
        vp_scales,
        _vp_sigma(1e-5),
        _vp_sigma(1.0),
        {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5},
    ),
    "VEPrecond": Preconditioning(ve_scales, 0.02, 100.0, {"sigma_min": 0.02, "sigma_max": 100}),
    "EDMPrecond": Preconditioning(
        edm_scales, 0.0, math.inf, {"sigma_min": 0, "sigma_max": math.inf, "sigma_data": 0.5}
    ),
}


class PreconditionedNetwork(nn.Module):
    """D(y; sigma) of a raw network and a preconditioning: "VPPrecond", "VEPrecond" or "EDMPrecond".

    `label_dim` is the number of classes, 0 for none.
    """

    def __init__(self, model: nn.Module, preconditioning: str, label_dim: int = 0) -> None:
        super().__init__()
        if preconditioning not in PRECONDITIONINGS:
            raise ValueError(
                f"Preconditioning {preconditioning!r} is unknown; expected one of "
                f"{', '.join(PRECONDITIONINGS)}."
            )
        self.model = model
        self.preconditioning = preconditioning
        self.label_dim = label_dim

    def forward(
        self,
        y: Tensor,
        sigma: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
        *,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Denoise y = x_0 + sigma noise, of shape (B, C, H, W), for sigma 0-d or (B,).

        Class labels are one-hot, (B, label_dim), with zeros (or None) for no class. The network computes in
        `dtype`, by default that of y.
        """
        sigma = sigma.to(torch.float64).expand(y.shape[0])
        scales = PRECONDITIONINGS[self.preconditioning].scales(sigma)
        dtype = dtype or y.dtype
        if self.label_dim and class_labels is None:
            class_labels = y.new_zeros(y.shape[0], self.label_dim)
        skip, out, into = (scale.to(y.dtype)[:, None, None, None] for scale in scales[:3])
        wide = torch.promote_types(dtype, torch.float32)  # embeddings of large labels need the digits
        labels = None if class_labels is None else class_labels.to(wide)
        augment = None if augment_labels is None else augment_labels.to(wide)
        output = self.model((into * y).to(dtype), scales.noise.to(wide), labels, augment)
        denoised: Tensor = skip * y + out * output.to(y.dtype)
        return denoised
