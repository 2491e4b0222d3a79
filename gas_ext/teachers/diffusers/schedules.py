"""What a diffusers scheduler says about its model: noise schedule, time, and the meaning of the output.

Only the scheduler's configuration is read. Our solvers replace its steps (order, spacing, clipping, noise).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from gas_ext.schedules import NoiseSchedule

# The network alone: (state, time in its own units (B,)) -> output.
NetworkFunction = Callable[[Tensor, Tensor], Tensor]

_EDM_SCHEDULERS = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
_MAX_BETA = 0.999  # cap of the cosine and Laplace schedules
# The float32 table of diffusers is a product of up to thousands of rounded factors.
_TABLE_RTOL, _TABLE_ATOL = 1e-4, 1e-6


@dataclass(frozen=True)
class Preconditioning:
    """How a network is called at a state of its schedule.

    Parameters
    ----------
    schedule : NoiseSchedule
        Schedule of the states.
    prediction_type : str
        What `__call__` returns.
    t_eps : float
        Default end of sampling; 1e-3 of noise is less than a level of an 8-bit image.
    levels, first : int
        The network is evaluated at the time levels * t - first, not rounded: it counts N noise levels from 0
        to N - 1 at t = 1/N, ..., 1 (first = 1), or is a flow (first = 0).
    sigma_data, sign : float, optional
        The network F is preconditioned as in Karras et al. (2022), table 1, with the time log(sigma) / 4:
        D(x) = c_skip x + c_out F(c_in x), where c_out changes its sign for networks trained on v.
    flow_shift : callable, optional
        Flow models: the scheduler's shift of times for a number of image tokens; see `shift_timesteps`.
    """

    schedule: NoiseSchedule
    prediction_type: str
    t_eps: float = 1e-3
    levels: int = 1000
    first: int = 0
    sigma_data: float | None = None
    sign: float = 1.0
    flow_shift: Callable[[int], float] | None = None

    @property
    def is_identity(self) -> bool:
        """Whether the network is given the state itself, and its output returned."""
        return self.sigma_data is None

    def network_time(self, t: Tensor) -> Tensor:
        """Return the time at which the network is evaluated, of the shape and dtype of t."""
        if self.is_identity:
            return self.levels * t - self.first
        return 0.25 * torch.log(self.schedule.sigma(t))

    def __call__(self, network: NetworkFunction, x: Tensor, t: Tensor) -> Tensor:
        """Evaluate the network at the state x and the schedule's times t (B,)."""
        time = self.network_time(t)
        if self.sigma_data is None:
            return network(x, time)
        sigma = self.schedule.sigma(t).reshape(-1, *[1] * (x.ndim - 1))
        variance = sigma**2 + self.sigma_data**2
        c_in = torch.rsqrt(variance)
        c_skip = self.sigma_data**2 / variance
        c_out = self.sign * sigma * self.sigma_data * c_in
        return c_skip.to(x.dtype) * x + c_out.to(x.dtype) * network(x * c_in.to(x.dtype), time)


def read_scheduler(scheduler: Any) -> Preconditioning:
    """Read schedule, time and prediction type from a diffusers scheduler.

    It may be over N betas (DDPM, DDIM, PNDM, Euler, DPM-Solver++, UniPC, ...), of flow matching, or of EDM;
    a ValueError names any other.
    """
    name, config = type(scheduler).__name__, scheduler.config
    prediction_type = config.get("prediction_type", "epsilon")
    if name.startswith("FlowMatch") or config.get("use_flow_sigmas"):
        if config.get("invert_sigmas"):
            raise _refused(name, "its time runs backwards (invert_sigmas)")
        if not name.startswith("FlowMatch") and prediction_type != "flow_prediction":
            raise _refused(name, f"its prediction type is {prediction_type!r} at sigmas of flow matching")
        levels, shift = config["num_train_timesteps"], _flow_shift(config)
        return Preconditioning(NoiseSchedule.flow(), "flow_prediction", levels=levels, flow_shift=shift)
    if name in _EDM_SCHEDULERS:
        return _edm_preconditioning(name, config)
    if config.get("timestep_type", "discrete") != "discrete":
        raise _refused(name, f"its network is conditioned on a time of type {config['timestep_type']!r}")
    table = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(table, Tensor) or table.numel() != config.get("num_train_timesteps"):
        raise _refused(name, "it has no table of alphas_cumprod")
    if prediction_type not in ("epsilon", "sample", "v_prediction"):
        raise _refused(name, f"its prediction type is {prediction_type!r}")
    levels, schedule = table.numel(), NoiseSchedule.vp_discrete(alphas_cumprod(scheduler))
    return Preconditioning(schedule, prediction_type, 1.0 / levels, levels, first=1)


def _refused(name: str, why: str) -> ValueError:
    return ValueError(
        f"{name} cannot be read as a noise schedule, because {why}; wrap the network with "
        "Denoiser.from_callable and a custom NoiseSchedule."
    )


def _edm_preconditioning(name: str, config: Mapping[str, Any]) -> Preconditioning:
    signs = {"epsilon": 1.0, "v_prediction": -1.0}
    if config["prediction_type"] not in signs:
        raise _refused(name, f"its prediction type is {config['prediction_type']!r}")
    schedule = NoiseSchedule.edm(config["sigma_min"], config["sigma_max"], config["rho"])
    sign = signs[config["prediction_type"]]
    return Preconditioning(schedule, "sample", sigma_data=config["sigma_data"], sign=sign)


def alphas_cumprod(scheduler: Any) -> Tensor:
    """Return the table of alpha^2 in float64, computed from the configured betas.

    If the scheduler's own float32 table differs by more than rounding (an unknown schedule), it is returned.
    """
    own: Tensor = scheduler.alphas_cumprod.detach().to("cpu", torch.float64)
    betas = _betas(scheduler.config)
    if betas is None:
        return own
    table = torch.cumprod(1.0 - betas, 0)
    if scheduler.config.get("rescale_betas_zero_snr"):
        # Shift and scale alpha so that the last is 0 and the first unchanged (arXiv 2305.08891, alg. 1).
        # Where diffusers leaves 2^-24 there, to keep logarithms finite, 0 is what the network was trained on.
        alpha = table.sqrt()
        table = ((alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))) ** 2
    same = table.shape == own.shape and torch.allclose(table, own, rtol=_TABLE_RTOL, atol=_TABLE_ATOL)
    return table if same else own


def _betas(config: Mapping[str, Any]) -> Tensor | None:
    """Return the betas of a configuration in float64, or None if their schedule is unknown."""
    steps, start, end = config["num_train_timesteps"], config.get("beta_start"), config.get("beta_end")
    trained = config.get("trained_betas")
    if trained is not None:
        return torch.tensor(trained, dtype=torch.float64)
    name = config.get("beta_schedule")
    if name == "squaredcos_cap_v2":
        return _betas_of(lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2.0) ** 2, steps)
    if name == "laplace":
        return _betas_of(_laplace, steps)
    if start is None or end is None:
        return None
    if name == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float64)
    if name == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64).square()
    if name == "sigmoid":
        rise = torch.sigmoid(torch.linspace(-6.0, 6.0, steps, dtype=torch.float64))
        return rise.mul(end - start).add(start)
    return None


def _betas_of(alpha_squared: Callable[[float], float], steps: int) -> Tensor:
    """Return betas whose products follow a function of time in [0, 1], none above 0.999."""
    values = [alpha_squared(k / steps) for k in range(steps + 1)]
    betas = [min(1.0 - after / before, _MAX_BETA) for before, after in pairwise(values)]
    return torch.tensor(betas, dtype=torch.float64)


def _laplace(t: float) -> float:
    """Return alpha^2 of the Laplace schedule as in diffusers: with a root that the paper does not have."""
    distance = 0.5 - t
    log_snr = -0.5 * math.copysign(1.0, distance) * math.log(1.0 - 2.0 * abs(distance) + 1e-6)
    return math.sqrt(1.0 / (1.0 + math.exp(-log_snr)))


def _flow_shift(config: Mapping[str, Any]) -> Callable[[int], float]:
    """Return the shift of a flow scheduler as a function of the number of image tokens."""
    if not config.get("use_dynamic_shifting"):
        shift = config.get("shift", config.get("flow_shift", 1.0))
        return lambda tokens: float(shift)
    # Defaults of the pipelines of diffusers, for schedulers that do not say.
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    start, end = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    linear = config.get("time_shift_type") == "linear"

    def dynamic(tokens: int) -> float:
        mu = start + (end - start) * (tokens - low) / (high - low)
        return mu if linear else math.exp(mu)

    return dynamic


def shift_timesteps(timesteps: Tensor, shift: float) -> Tensor:
    """Shift times of a flow towards noise: s t / (1 + (s - 1) t), as flow schedulers do with their sigmas.

    The shift is a choice of times, not a property of the schedule. For large images, start solvers from
    shifted times.

    Parameters
    ----------
    timesteps : Tensor
        Times in [0, 1], any shape.
    shift : float
        Above 0; 1 changes nothing. See `DiffusersTeacher.flow_shift`.

    Examples
    --------
    >>> shift_timesteps(torch.tensor([1.0, 0.5, 0.0]), 3.0)
    tensor([1.0000, 0.7500, 0.0000])
    """
    return shift * timesteps / (1.0 + (shift - 1.0) * timesteps)
