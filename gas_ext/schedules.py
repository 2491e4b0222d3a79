"""Noise schedules: alpha(t), sigma(t), lambda(t) = log(alpha / sigma) and the inverse of lambda.

A schedule blends a clean sample x_0 with noise eps: x_t = alpha(t) x_0 + sigma(t) eps. Sampling runs from
t = 1 (noise) down to a small t_eps (data). Everything is float64, differentiable in t, and written without
cancellation (expm1, log1p, logaddexp), so that sigma(1e-4) has all its digits.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gas_ext._utils.checks import float64_table, real_number
from gas_ext._utils.records import shown

Times = Tensor | float

# Learned time offsets may evaluate a network slightly beyond t = 1; published solvers reach 1.08.
_T_MAX = 1.25
_LEAST_RHO, _MOST_RHO = 0.01, 1000.0
_WRONG_KNOTS = "Knots need increasing times >= 0 and finite, decreasing log alpha <= 0."


def as_float64(value: Times) -> Tensor:
    """Return a number or tensor as a float64 tensor, exactly, with the same device and gradient."""
    # torch.as_tensor would move a tensor to torch's default device.
    return value.to(torch.float64) if isinstance(value, Tensor) else float64_table("The time", value)


def check_schedule(schedule: NoiseSchedule) -> None:
    """Raise TypeError unless this is a schedule."""
    if not isinstance(schedule, NoiseSchedule):
        raise TypeError(f"schedule is {schedule!r}, but must be a NoiseSchedule, e.g. .flow().")


class NoiseSchedule(ABC):
    """A noise schedule x_t = alpha(t) x_0 + sigma(t) eps; build one with a static method below.

    Attributes
    ----------
    family : str
        "vp_linear", "vp_knots", "edm" or "flow".
    t_min, t_max : float
        The open interval in which sigma is positive and lambda finite. Where ``zero_terminal_snr`` holds,
        t_max = 1 belongs to the domain although lambda(1) = -inf.
    zero_terminal_snr : bool
        Whether alpha(1) = 0 (flow matching, zero terminal SNR).
    init_noise_sigma : float
        Standard deviation of x at t = 1: 1 for variance preserving and flow, sigma_max for EDM.

    Examples
    --------
    >>> schedule = NoiseSchedule.vp_linear(0.1, 20.0)
    >>> round(schedule.sigma(1e-4).item(), 12)
    0.003177963027
    >>> round(schedule.inverse_lambda(schedule.lambda_(0.3)).item(), 12)
    0.3
    """

    family: str
    t_min: float = 0.0
    t_max: float = _T_MAX
    zero_terminal_snr: bool = False
    init_noise_sigma: float = 1.0

    @staticmethod
    def vp_linear(beta_0: float = 0.1, beta_1: float = 20.0) -> NoiseSchedule:
        """Variance preserving, beta(t) linear: log alpha = -t^2 (beta_1 - beta_0) / 4 - t beta_0 / 2."""
        return _VPLinear(beta_0, beta_1)

    @staticmethod
    def vp_from_edm(
        sigma_min: float = 0.0, sigma_max: float = math.inf, t_eps: float = 1e-3
    ) -> NoiseSchedule:
        """Linear VP schedule restricted to the sigma range of an EDM network.

        The range of sigma / alpha on [t_eps, 1] of the usual VP schedule (beta 0.1 to 20) is clipped to
        [sigma_min, sigma_max], and beta is solved to match both ends (EDM, Karras et al. 2022, table 1).

        Parameters
        ----------
        sigma_min, sigma_max : float
            The range that the network declares. Default: 0 and inf, which leave the usual schedule unchanged.
        t_eps : float
            Last time of the solve, in (0, 1). Default: 1e-3.
        """
        if not 0.0 < real_number("t_eps", t_eps) < 1.0:
            raise ValueError(f"t_eps is {t_eps}, but must lie between 0 and 1.")
        sigma_min, sigma_max = real_number("sigma_min", sigma_min), real_number("sigma_max", sigma_max)
        usual = _VPLinear(0.1, 20.0)
        low = max(sigma_min, math.exp(-usual.lambda_(t_eps).item()))
        high = min(sigma_max, math.exp(-usual.lambda_(1.0).item()))
        # -2 log alpha = log1p((sigma / alpha)^2) = t^2 beta_d / 2 + t beta_min, at t_eps and at 1.
        at_eps, at_one = math.log1p(low**2), math.log1p(high**2)
        beta_d = 2.0 * (at_one - at_eps / t_eps) / (1.0 - t_eps)
        beta_min = at_one - 0.5 * beta_d
        return _VPLinear(beta_min, beta_min + beta_d)

    @staticmethod
    def vp_discrete(alphas_cumprod: Tensor | Sequence[float]) -> NoiseSchedule:
        """Variance preserving from a table of alpha^2 at t = 1/N, 2/N, ..., 1; log alpha is piecewise linear.

        A last entry of 0 (zero terminal SNR) is accepted: alpha itself is then linear in the last interval.
        """
        table = _table(alphas_cumprod)
        times = torch.arange(1, table.numel() + 1, dtype=torch.float64, device="cpu") / table.numel()
        return NoiseSchedule.from_knots(times, 0.5 * torch.log(table))

    @staticmethod
    def from_knots(times: Tensor | Sequence[float], log_alpha: Tensor | Sequence[float]) -> NoiseSchedule:
        """Variance preserving with log alpha linear between the given knots, and beyond the outer ones.

        Times must increase to 1 and log alpha decrease; the last log alpha may be -inf (zero terminal SNR).
        """
        knots = _table(log_alpha)
        ends_at_zero = knots.numel() > 0 and knots[-1].item() == -math.inf
        family = _VPZeroTerminal if ends_at_zero else _VPKnots
        return family(_table(times), knots)

    @staticmethod
    def edm(sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> NoiseSchedule:
        """Variance exploding (EDM): alpha = 1, time is the rho-warped sigma of Karras et al. (2022), eq. 5.

        sigma(t) = (a + t (b - a))^rho with a = sigma_min^(1/rho), b = sigma_max^(1/rho), so that sigma(0) =
        sigma_min, sigma(1) = sigma_max, and uniform times are EDM's spacing.
        """
        return _EDM(sigma_min, sigma_max, rho)

    @staticmethod
    def flow() -> NoiseSchedule:
        """Flow matching (rectified flow): alpha = 1 - t, sigma = t."""
        return _Flow()

    @abstractmethod
    def log_alpha(self, t: Times) -> Tensor:
        """Return log alpha(t), float64, shape of t; -inf where alpha is 0."""

    @abstractmethod
    def inverse_lambda(self, lam: Times) -> Tensor:
        """Return the time t with lambda(t) = lam, float64, shape of lam."""

    @abstractmethod
    def sigma(self, t: Times) -> Tensor:
        """Return sigma(t), float64, shape of t; NaN outside the domain of the formula.

        As in published solvers, VP linear is not cut off at t = 0: it has a value at -0.5.
        """

    @abstractmethod
    def lambda_(self, t: Times) -> Tensor:
        """Return lambda(t) = log(alpha / sigma), float64; -inf with zero gradient where alpha is 0."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings and lists from which `from_dict` rebuilds the schedule exactly."""

    def alpha(self, t: Times) -> Tensor:
        """Return alpha(t), float64, shape of t."""
        return torch.exp(self.log_alpha(t))

    @staticmethod
    def from_dict(record: Mapping[str, Any]) -> NoiseSchedule:
        """Rebuild a schedule from `to_dict`.

        Raises
        ------
        TypeError
            If the record is not a mapping.
        ValueError
            If the family is unknown or a value is missing.
        """
        if not isinstance(record, Mapping):
            raise TypeError(f"The record of a schedule is {record!r}, but must be what to_dict returns.")
        values = dict(record)
        family = values.pop("family", None)
        families: dict[str, Callable[..., NoiseSchedule]] = {
            "vp_linear": NoiseSchedule.vp_linear,
            "vp_knots": NoiseSchedule.from_knots,
            "edm": NoiseSchedule.edm,
            "flow": NoiseSchedule.flow,
        }
        if not isinstance(family, str) or family not in families:
            raise ValueError(
                f"Schedule family {shown(family)} is unknown; expected vp_linear, vp_knots, edm or flow."
            )
        try:
            return families[family](**values)
        except (TypeError, ArithmeticError, RuntimeError) as error:
            raise ValueError(f"The record of a {family} schedule is incomplete: {error}.") from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NoiseSchedule) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(str(self.to_dict()))

    def __repr__(self) -> str:
        values = self.to_dict()
        family = values.pop("family")
        if family == "vp_knots":
            return f"NoiseSchedule.from_knots(<{len(values['times'])} knots>)"
        return f"NoiseSchedule.{family}({', '.join(f'{name}={value}' for name, value in values.items())})"


class _VariancePreserving(NoiseSchedule):
    """alpha^2 + sigma^2 = 1: everything follows from log alpha."""

    def sigma(self, t: Times) -> Tensor:
        return torch.sqrt(-torch.expm1(2.0 * self.log_alpha(t)))

    def lambda_(self, t: Times) -> Tensor:
        log_alpha = self.log_alpha(t)
        return log_alpha - 0.5 * torch.log(-torch.expm1(2.0 * log_alpha))


class _VPLinear(_VariancePreserving):
    family = "vp_linear"

    def __init__(self, beta_0: float, beta_1: float) -> None:
        self.beta_0, self.beta_1 = real_number("beta_0", beta_0), real_number("beta_1", beta_1)
        if not (0.0 <= self.beta_0 <= self.beta_1 < math.inf and self.beta_1 > 0.0):
            raise ValueError(
                f"Expected 0 <= beta_0 <= beta_1 < inf, but got beta_0 = {self.beta_0}, "
                f"beta_1 = {self.beta_1}."
            )

    def log_alpha(self, t: Times) -> Tensor:
        t = as_float64(t)
        return -0.25 * t**2 * (self.beta_1 - self.beta_0) - 0.5 * t * self.beta_0

    def inverse_lambda(self, lam: Times) -> Tensor:
        # Positive root of t^2 (beta_1 - beta_0) / 2 + t beta_0 = L, in the form that does not cancel.
        level = -2.0 * _log_alpha_of_lambda(lam)
        root = torch.sqrt(self.beta_0**2 + 2.0 * (self.beta_1 - self.beta_0) * level)
        return 2.0 * level / (self.beta_0 + root)

    def to_dict(self) -> dict[str, Any]:
        return {"family": self.family, "beta_0": self.beta_0, "beta_1": self.beta_1}


class _VPKnots(_VariancePreserving):
    """Log alpha is linear between knots; the outer segments extend beyond them."""

    family = "vp_knots"

    def __init__(self, times: Tensor, log_alpha: Tensor) -> None:
        if times.shape != log_alpha.shape or times.numel() < 2:
            raise ValueError(
                f"Got {times.numel()} times and {log_alpha.numel()} values of log alpha, "
                "but expected equally many, at least two."
            )
        falling = bool((times.diff() > 0).all()) and bool((log_alpha.diff() < 0).all())
        if not (falling and bool(torch.isfinite(times + log_alpha).all()) and log_alpha[0] <= 0 <= times[0]):
            raise ValueError(_WRONG_KNOTS)
        # The domain begins where the first segment, continued downwards, reaches alpha = 1.
        slope = (log_alpha[1] - log_alpha[0]) / (times[1] - times[0])
        self.t_min = max(0.0, (times[0] - log_alpha[0] / slope).item())
        self._knots = {times.device: (times, log_alpha)}
        self._check_end(times)

    def _check_end(self, times: Tensor) -> None:
        if abs(times[-1].item() - 1.0) > 1e-6:
            raise ValueError(f"The last knot is at t = {times[-1].item()}, but a schedule must reach t = 1.")

    def knots(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return (times, log alpha) of the knots on `device`; they are copied there once."""
        if device in self._knots:
            return self._knots[device]
        times, log_alpha = next(iter(self._knots.values()))
        copies = times.to(device), log_alpha.to(device)
        if not torch.compiler.is_compiling():  # what a compiled graph makes may not outlive it
            self._knots[device] = copies
        return copies

    def log_alpha(self, t: Times) -> Tensor:
        t = as_float64(t)
        return _interpolate(*self.knots(t.device), t)

    def inverse_lambda(self, lam: Times) -> Tensor:
        log_alpha = _log_alpha_of_lambda(lam)
        times, knots = self.knots(log_alpha.device)
        return _interpolate(-knots, times, -log_alpha)

    def to_dict(self) -> dict[str, Any]:
        times, log_alpha = next(iter(self._knots.values()))
        return {"family": self.family, "times": times.tolist(), "log_alpha": log_alpha.tolist()}


class _VPZeroTerminal(_VPKnots):
    """Knots with a last log alpha of -inf: in the last interval alpha itself is linear, down to 0."""

    t_max = 1.0
    zero_terminal_snr = True

    def __init__(self, times: Tensor, log_alpha: Tensor) -> None:
        if times.shape != log_alpha.shape or times.numel() < 3:
            raise ValueError("Knots that end at alpha = 0 must be as many times as log alphas, at least 3.")
        if times[-1].item() != 1.0:
            raise ValueError(f"alpha reaches 0 at t = {times[-1].item()}, but this must happen at t = 1.")
        self._tail_start = times[-2].item()
        super().__init__(times[:-1], log_alpha[:-1])

    def _check_end(self, times: Tensor) -> None:
        if not times[-1] < 1.0:
            raise ValueError(_WRONG_KNOTS)

    def log_alpha(self, t: Times) -> Tensor:
        t = as_float64(t)
        # Selected rather than clamped: exactly at the last knot, clamp has no gradient on either side.
        in_tail = t > self._tail_start
        tail = torch.where(in_tail, (1.0 - t) / (1.0 - self._tail_start), 1.0)
        ended = tail == 0.0  # the logarithm and its gradient are kept away from zero
        log_tail = torch.log(torch.where(ended, 1.0, tail))
        before = super().log_alpha(torch.where(in_tail, self._tail_start, t))
        return torch.where(ended, -math.inf, before + log_tail)

    def inverse_lambda(self, lam: Times) -> Tensor:
        excess = _log_alpha_of_lambda(lam) - self.knots(as_float64(lam).device)[1][-1]
        in_tail = 1.0 - (1.0 - self._tail_start) * torch.exp(excess.clamp(max=0.0))
        return torch.where(excess < 0.0, in_tail, super().inverse_lambda(lam))

    def to_dict(self) -> dict[str, Any]:
        record = super().to_dict()
        return {**record, "times": [*record["times"], 1.0], "log_alpha": [*record["log_alpha"], -math.inf]}


class _EDM(NoiseSchedule):
    family = "edm"

    def __init__(self, sigma_min: float, sigma_max: float, rho: float) -> None:
        self.sigma_min = real_number("sigma_min", sigma_min)
        self.sigma_max = real_number("sigma_max", sigma_max)
        self.rho = real_number("rho", rho)
        if not (0.0 < self.sigma_min < self.sigma_max < math.inf and 0.0 < self.rho < math.inf):
            raise ValueError(
                f"sigma_min = {self.sigma_min}, sigma_max = {self.sigma_max}, rho = {self.rho}, "
                "but expected 0 < sigma_min < sigma_max and rho > 0, all finite."
            )
        if not _LEAST_RHO <= self.rho <= _MOST_RHO:  # beyond, the powers below leave the range of float64
            raise ValueError(f"rho is {rho}, but must be {_LEAST_RHO} to {_MOST_RHO}; 7 is usual.")
        self._start = _power(self.sigma_min, 1.0 / self.rho)
        self._slope = _power(self.sigma_max, 1.0 / self.rho) - self._start
        if not (0.0 < self._start < math.inf and 0.0 < self._slope < math.inf):
            raise ValueError(
                f"sigma_min = {sigma_min} and sigma_max = {sigma_max} are too far apart, or too close, for "
                f"rho = {rho}; choose others."
            )
        self.t_min = -0.5 * self._start / self._slope  # sigma = sigma_min / 2^rho; 0 at twice this
        self.init_noise_sigma = self.sigma_max

    def _root(self, t: Times) -> Tensor:
        """Return sigma^(1/rho), which is linear in t."""
        root = self._start + as_float64(t) * self._slope
        return torch.where(root >= 0.0, root, math.nan)

    def log_alpha(self, t: Times) -> Tensor:
        return torch.zeros_like(as_float64(t))

    def sigma(self, t: Times) -> Tensor:
        return self._root(t) ** self.rho

    def lambda_(self, t: Times) -> Tensor:
        return -self.rho * torch.log(self._root(t))

    def inverse_lambda(self, lam: Times) -> Tensor:
        t: Tensor = (torch.exp(-as_float64(lam) / self.rho) - self._start) / self._slope
        return t

    def to_dict(self) -> dict[str, Any]:
        values = {"sigma_min": self.sigma_min, "sigma_max": self.sigma_max, "rho": self.rho}
        return {"family": self.family, **values}


class _Flow(NoiseSchedule):
    family = "flow"
    t_max = 1.0
    zero_terminal_snr = True

    def log_alpha(self, t: Times) -> Tensor:
        return torch.log1p(-_defined(t))

    def alpha(self, t: Times) -> Tensor:
        return 1.0 - _defined(t)

    def sigma(self, t: Times) -> Tensor:
        return _defined(t)

    def lambda_(self, t: Times) -> Tensor:
        t = as_float64(t)
        ended = t == 1.0
        inside = torch.where(ended, 0.5, t)
        return torch.where(ended, -math.inf, torch.log1p(-inside) - torch.log(inside))

    def inverse_lambda(self, lam: Times) -> Tensor:
        return torch.sigmoid(-as_float64(lam))

    def to_dict(self) -> dict[str, Any]:
        return {"family": self.family}


def _power(base: float, exponent: float) -> float:
    try:
        return float(base**exponent)
    except OverflowError:
        return math.inf


def _defined(t: Times) -> Tensor:
    """Return times as float64, and NaN where they are not within [0, 1]."""
    t = as_float64(t)
    return torch.where((t >= 0.0) & (t <= 1.0), t, math.nan)


def _table(values: Tensor | Sequence[float]) -> Tensor:
    """Return a new flat float64 tensor on the CPU, without gradient."""
    return float64_table("The table", values).flatten().clone()


def _log_alpha_of_lambda(lam: Times) -> Tensor:
    """Log alpha = -log(1 + exp(-2 lambda)) / 2 of a variance-preserving schedule."""
    minus_two_lambda = -2.0 * as_float64(lam)
    return -0.5 * torch.logaddexp(minus_two_lambda, torch.zeros_like(minus_two_lambda))


def _interpolate(x: Tensor, y: Tensor, query: Tensor) -> Tensor:
    """Piecewise-linear y(query) through increasing knots x; the outer segments are continued."""
    right = torch.searchsorted(x, query.detach().contiguous()).clamp(1, x.numel() - 1)
    x_left, y_left = x[right - 1], y[right - 1]
    return y_left + (query - x_left) * ((y[right] - y_left) / (x[right] - x_left))
