"""A denoiser with a closed form: every pixel is -1 or +1 with equal odds, plus Gaussian noise of std 0.3."""

import torch

from gas_ext import NoiseSchedule

SCHEDULE = NoiseSchedule.vp_linear()
STD = 0.3


def mixture_denoiser(x, t, condition=None):
    """E[x_0 | x_t]: the component means are -alpha and alpha, their variance (alpha std)^2 + sigma^2."""
    alpha, sigma = SCHEDULE.alpha(t).to(x.dtype), SCHEDULE.sigma(t).to(x.dtype)
    variance = (alpha * STD) ** 2 + sigma**2
    sign = torch.tanh(alpha * x / variance)  # E[component | x_t]
    shift = 0.0 if condition is None else 0.1 * condition.to(x.dtype).view(-1, *[1] * (x.ndim - 1))
    return sign + alpha * STD**2 / variance * (x - alpha * sign) + shift
