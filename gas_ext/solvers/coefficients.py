"""Coefficients of all steps of a solve, computed from a schedule, timesteps and corrections.

With lambda = log(alpha / sigma), h_n = lambda_{n+1} - lambda_n and D_n the data prediction at step n, one
step of DPM-Solver++ (multistep, Lu et al. 2022) is x_{n+1} = sigma_{n+1} / sigma_n x_n + sum_j c_nj D_j. A
learned solver adds corrections to it (GAS, arXiv 2510.17699, section 3). Everything here is float64,
differentiable, on the device of its inputs, and free of host synchronization.

Where alpha(1) = 0, lambda_0 = -inf and h_0 = inf. All weights are written so that they reach their finite
limits: h_0 appears only in denominators and in exp(-h_0).
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from gas_ext._utils.checks import real_number
from gas_ext.schedules import NoiseSchedule

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "flow_prediction")


class StepWeights(NamedTuple):
    """Weights of the updates x_{n+1} = sum_j state[n, j] x_{n-j} + sum_j data[n, j] D_{n-j} of all steps n.

    Both are float64, (N, stored states) and (N, stored data predictions); entries with j > n are zero.
    """

    state: Tensor
    data: Tensor


class SolverCoefficients(NamedTuple):
    """Coefficients of all steps of a solve.

    Attributes
    ----------
    rows : tuple of Tensor
        One float64 row per step, in the layout of `gas_ext.ops.fused_update`: [p, q, guidance, next scale,
        weight of D_n, weights of x_n, x_{n-1}, ..., D_{n-1}, D_{n-2}, ...], as far as they are stored.
    timesteps : Tensor
        (N + 1,) float64, from 1 to t_eps.
    evaluation_timesteps : Tensor
        (N,) float64, the times at which the network is evaluated.
    weights : StepWeights
        The same weights as two tables.
    """

    rows: tuple[Tensor, ...]
    timesteps: Tensor
    evaluation_timesteps: Tensor
    weights: StepWeights


@runtime_checkable
class Solver(Protocol):
    """What `GASSampler` runs: a schedule, a number of steps, and the coefficients of each step."""

    schedule: NoiseSchedule
    steps: int
    t_eps: float
    prediction_type: str | None
    guidance_scale: float | None

    def coefficients(
        self, prediction_type: str | None = None, guidance_scale: float | None = None
    ) -> SolverCoefficients:
        """Return the coefficients of all steps of a solve."""


def data_prediction_coefficients(
    schedule: NoiseSchedule, timesteps: Tensor, evaluation_timesteps: Tensor, prediction_type: str
) -> tuple[Tensor, Tensor]:
    """Return p, q of D = p x + q m, where m is the network's output at (x, evaluation time).

    The output m is eps for "epsilon", x_0 for "sample", eps - x_0 for "flow_prediction", and
    (alpha eps - sigma x_0) / sqrt(alpha^2 + sigma^2) for "v_prediction" (Salimans and Ho 2022). All but
    "sample" are read at the time t of the state. A "sample" is first turned into noise at the evaluation time
    t', as published solvers do: D = (x - sigma(t) (x - alpha(t') m) / sigma(t')) / alpha(t).
    On schedules with alpha(1) = 0 that has no limit, and m is D itself. All agree where t' = t.
    """
    check_prediction_type(schedule, prediction_type)
    alpha, sigma = schedule.alpha(timesteps), schedule.sigma(timesteps)
    if prediction_type == "epsilon":
        return 1.0 / alpha, -sigma / alpha
    if prediction_type == "v_prediction":
        square = alpha**2 + sigma**2
        return alpha / square, -sigma / torch.sqrt(square)
    if prediction_type == "flow_prediction":
        return 1.0 / (alpha + sigma), -sigma / (alpha + sigma)
    if schedule.zero_terminal_snr:
        return torch.zeros_like(alpha), torch.ones_like(alpha)
    alpha_seen, sigma_seen = schedule.alpha(evaluation_timesteps), schedule.sigma(evaluation_timesteps)
    scale = alpha * sigma_seen
    return (sigma_seen - sigma) / scale, sigma * alpha_seen / scale


def check_prediction_type(schedule: NoiseSchedule, prediction_type: str) -> None:
    """Raise ValueError unless the prediction type is known and gives a data prediction on this schedule."""
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"Prediction type {prediction_type!r} is unknown; expected one of {', '.join(PREDICTION_TYPES)}."
        )
    if prediction_type == "epsilon" and schedule.zero_terminal_snr:
        raise ValueError(
            f"A noise prediction says nothing about the data at t = 1, where {schedule!r} has alpha = 0; "
            "use a network that predicts sample, v_prediction or flow_prediction."
        )


def check_guidance_scale(value: float | None) -> float | None:
    """Return a guidance scale as a float, or None; TypeError or ValueError if it is not a finite number."""
    scale = None if value is None else real_number("guidance_scale", value)
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"guidance_scale is {scale}, but must be finite; pass None for no guidance.")
    return scale


def guided_weights(
    schedule: NoiseSchedule,
    timesteps: Tensor,
    data_corrections: Tensor,
    state_corrections: Tensor,
    theory_order: int = 3,
) -> StepWeights:
    """Return DPM-Solver++ weights of the current timesteps plus corrections ("theory guidance").

    Row i of the (order, N) corrections acts i steps back. State corrections add to the weights of x. Of the
    data corrections, the first min(n + 1, order, theory_order) act on the theory's own terms (D_n and its
    divided differences) with the signs of published solvers, the others on D_{n-i} itself. `theory_order` is
    1, 2 or 3.
    """
    order, steps = data_corrections.shape
    corrections = mask_inactive(data_corrections.to(torch.float64))
    alpha_next = schedule.alpha(timesteps[1:])
    h = schedule.lambda_(timesteps).diff()
    highest = min(order, theory_order, steps)
    blocks = []
    for k in range(1, highest + 1):  # step k - 1 is the first with k terms, and `highest` terms are the most
        first, end = k - 1, k if k < highest else steps
        previous = [h[first - i : end - i] for i in range(k)]
        blocks.append(_theory_block(alpha_next[first:end], previous, corrections[:, first:end]))
    sigma = schedule.sigma(timesteps)
    return StepWeights(_state_weights(sigma[1:] / sigma[:-1], state_corrections), torch.cat(blocks))


def _theory_block(alpha_next: Tensor, h: list[Tensor], c: Tensor) -> Tensor:
    """Return the data weights (rows, order) of steps whose theory has k = len(h) terms.

    h[i] is the step in lambda i steps back. In the divided differences d0 = (D_n - D_{n-1}) / r0 and
    d1 = (D_{n-1} - D_{n-2}) / r1 with r_i = h[i + 1] / h[0], the theory reads (Lu et al. 2022, appendix B)
        k = 1: -alpha p1 D_n
        k = 2: -alpha p1 D_n - alpha p1 / 2 d0
        k = 3: -alpha p1 D_n + alpha p2 E1 - alpha p3 E2,
               E1 = d0 + r0 / (r0 + r1) (d0 - d1), E2 = (d0 - d1) / (r0 + r1).
    """
    k = len(h)
    p1 = alpha_next * torch.expm1(-h[0])
    newest = -(p1 + c[0])
    if k == 1:
        columns = [newest]
    elif k == 2:
        on_d0 = -(0.5 * p1 + c[1]) * (h[0] / h[1])
        columns = [newest + on_d0, -on_d0]
    else:
        p2, p3 = _phi_tails(h[0])
        first, second = alpha_next * p2 + c[1], -(alpha_next * p3 + c[2])
        rest = (first * h[1] + second * h[0]) / (h[1] + h[2])  # weight of d0 - d1
        on_d0, on_d1 = (first + rest) * (h[0] / h[1]), -rest * (h[0] / h[2])
        columns = [newest + on_d0, on_d1 - on_d0, -on_d1]
    return torch.stack([*columns, *c[k:]], dim=1)


def _phi_tails(h: Tensor) -> tuple[Tensor, Tensor]:
    """Return p2 = expm1(-h) / h + 1 and p3 = p2 / h - 1/2, by their series where the formulas cancel."""
    small = h.abs() < 0.1
    near, far = torch.where(small, h, 0.0), torch.where(small, 1.0, h)
    p2 = torch.expm1(-far) / far + 1.0
    p3 = p2 / far - 0.5
    series = torch.zeros_like(h)  # p3 = -h/3! + h^2/4! - h^3/5! + ...
    factorial = 3628800.0 * 11.0
    for n in range(11, 2, -1):
        series = ((-1.0) ** n / factorial + series) * near
        factorial /= n
    return torch.where(small, near * (series + 0.5), p2), torch.where(small, series, p3)


def free_weights(
    schedule: NoiseSchedule, timesteps: Tensor, data_corrections: Tensor, state_corrections: Tensor
) -> StepWeights:
    """Return the weights of a linear multistep solver that do not depend on the timesteps (as in S4S).

    x_{n+1} = sigma_{n+1} / sigma_n x_n + sum_i c_i D_{n-i} + sum_i a_i x_{n-i}: the data corrections are the
    weights themselves.
    """
    sigma = schedule.sigma(timesteps)
    data = mask_inactive(data_corrections.to(torch.float64)).T
    return StepWeights(_state_weights(sigma[1:] / sigma[:-1], state_corrections), data)


def reference_s4s_weights(
    schedule: NoiseSchedule, timesteps: Tensor, data_corrections: Tensor, state_corrections: Tensor
) -> StepWeights:
    """Return the weights of the published code without theory guidance.

    With r = sigma_{n+1} / sigma_n and C = alpha_{n+1} (1 - exp(-h)):
    x_{n+1} = r (r x_n + C sum_i c_i D_{n-i}) + C sum_i a_i D_{n-i}. So r enters twice, and the "state"
    corrections act on D.
    """
    sigma = schedule.sigma(timesteps)
    ratio, scale = sigma[1:] / sigma[:-1], data_scale(schedule, timesteps)
    c, a = data_corrections.to(torch.float64), state_corrections.to(torch.float64)
    state = _state_weights(ratio**2, torch.zeros_like(a))
    return StepWeights(state, mask_inactive(scale * (ratio * c + a)).T)


def data_scale(schedule: NoiseSchedule, timesteps: Tensor) -> Tensor:
    """Return alpha_{n+1} (1 - exp(-h_n)), (N,): the sum of the data weights of any consistent step."""
    return -schedule.alpha(timesteps[1:]) * torch.expm1(-schedule.lambda_(timesteps).diff())


def mask_inactive(corrections: Tensor) -> Tensor:
    """Set rows i > n of column n of an (order, N) table to zero: step n has no such history."""
    order, steps = corrections.shape
    back = torch.arange(order, device=corrections.device)
    step = torch.arange(steps, device=corrections.device)
    return torch.where(back[:, None] <= step, corrections, 0.0)


def _state_weights(ratio: Tensor, state_corrections: Tensor) -> Tensor:
    """Return (N, order): the corrections, plus `ratio` on the newest state."""
    weights = mask_inactive(state_corrections.to(torch.float64)).T
    return torch.cat([weights[:, :1] + ratio[:, None], weights[:, 1:]], dim=1)


def fused_rows(
    p: Tensor, q: Tensor, weights: StepWeights, guidance_scale: float | None = None
) -> tuple[Tensor, ...]:
    """Return one row per step in the layout of `gas_ext.ops.fused_update`; see `SolverCoefficients`."""
    guidance_scale = check_guidance_scale(guidance_scale)
    guidance = torch.full_like(p, 1.0 if guidance_scale is None else guidance_scale)
    head = torch.stack([p, q, guidance, torch.ones_like(p), weights.data[:, 0]], dim=1)
    return tuple(
        torch.cat([head[n], weights.state[n, : n + 1], weights.data[n, 1 : n + 1]]) for n in range(len(head))
    )
