"""The toy networks of the golden data (index.json, `toy_networks`), differentiable and in any precision."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from gas_ext import NoiseSchedule


class GaussianMixture:
    """Exact denoiser D(y; sigma) of a pixelwise (or joint) mixture of Gaussians."""

    def __init__(self, mean: Tensor, std: Tensor, log_weight: Tensor, joint: bool = False) -> None:
        self.mean, self.std, self.log_weight, self.joint = mean, std, log_weight, joint

    def __call__(self, y: Tensor, sigma: Tensor) -> Tensor:
        shape = (-1, *[1] * (y.ndim - 1))  # component, then pixels
        variance = self.std.reshape(shape) ** 2 + sigma**2
        z = y[:, None] - self.mean
        square = z**2 / variance
        log_variance = torch.log(variance)
        if self.joint:
            square = square.flatten(2).sum(2).reshape(*square.shape[:2], *[1] * (y.ndim - 1))
            log_variance = log_variance * y[0].numel()
        logits = self.log_weight.reshape(shape) - 0.5 * log_variance - 0.5 * square
        share = torch.softmax(logits, dim=1)
        return (share * (self.mean + self.std.reshape(shape) ** 2 / variance * z)).sum(1)

    def as_denoiser(self, schedule: NoiseSchedule):
        """A "sample" network in the schedule's coordinates: y = x / alpha(t), sigma = sigma(t) / alpha(t)."""

        def denoiser(x: Tensor, t: Tensor, condition: object) -> Tensor:
            alpha, sigma = schedule.alpha(t), schedule.sigma(t)
            return self((x / alpha).to(x.dtype), (sigma / alpha).to(x.dtype))

        return denoiser


class TinyNoiseNet:
    """A two-layer convolution that predicts noise; network time tau = (t - 1/1000) 1000."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.w = weights

    def __call__(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        w = self.w
        u = ((t - 1.0 / 1000.0) * 1000.0 + 1.0) / 1000.0
        u = u.to(x.dtype)
        j = torch.arange(1, 5, dtype=x.dtype)
        features = torch.cat([torch.cos(2.0 * math.pi * u * j), torch.sin(2.0 * math.pi * u * j)])
        hidden = F.conv2d(x, w["W1"], w["b1"], padding=1) + (w["Wt"] @ features + w["bt"])[:, None, None]
        if condition is not None:
            hidden = hidden + (condition[:, 0] @ w["Wc"].T)[:, :, None, None]
        g = F.conv2d(F.silu(hidden), w["W2"], w["b2"], padding=1)
        signal = torch.exp(-(1.5 * u + 7.3 * u**2))
        noise = 1.0 - signal
        return x * torch.sqrt(noise) / (0.36 * signal + noise) + 0.5 * torch.sqrt(signal) * g
