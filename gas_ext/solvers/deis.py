"""DEIS: exponential Adams-Bashforth in time with exact integrals."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from gas_ext.schedules import NoiseSchedule
from gas_ext.solvers.coefficients import StepWeights
from gas_ext.solvers.multistep import NoiseMultistepSolver, check_choice
from gas_ext.solvers.timesteps import Timesteps

# Gauss-Legendre nodes per panel, and the longest panel in lambda. The integrand is analytic within pi / 2 of
# the real axis, so the error of 16 nodes on a panel of length 1 is below float64 rounding.
_NODES, _PANEL = 16, 1.0


class DEISSolver(NoiseMultistepSolver):
    """DEIS (Zhang and Chen 2023), tAB-DEIS of order 0 to 3; NFE = steps.

    With k = sigma / alpha the solution is x_{n+1} / alpha_{n+1} = x_n / alpha_n + int eps dk. The noise
    prediction is replaced by the polynomial in t through its last values. The integrals of the Lagrange
    polynomials are exact: Gauss-Legendre quadrature in lambda in float64, split at the knots of the schedule.
    As in the paper, the order is the degree of the polynomial: order r uses r + 1 evaluations, and order 0 is
    DDIM. (diffusers counts evaluations and calls it r + 1.)

    Parameters
    ----------
    variable : str
        Variable of the polynomial: "time" (default), as in the paper's tAB, or "lambda" (log rho), as in
        diffusers.
    schedule, steps, order, t_eps, timesteps
        As for `MultistepSolver`; order 0 to 3 (default 3), timesteps "quadratic" by default.

    Examples
    --------
    >>> solver = DEISSolver(NoiseSchedule.vp_linear(), steps=5, order=2)
    >>> solver.weights().data.shape
    torch.Size([5, 3])
    """

    lowest_order, highest_order = 0, 3
    options = ("variable",)

    def __init__(
        self,
        schedule: NoiseSchedule,
        steps: int,
        order: int = 3,
        t_eps: float = 1e-3,
        timesteps: Timesteps = "quadratic",
        *,
        variable: str = "time",
    ) -> None:
        super().__init__(schedule, steps, order, t_eps, timesteps)
        self.variable = check_choice("variable", variable, ("time", "lambda"))

    def _compute_weights(self) -> StepWeights:
        times = self._times
        alpha, lambdas = self.schedule.alpha(times), self.schedule.lambda_(times)
        positions = times if self.variable == "time" else lambdas
        data = torch.zeros(self.steps, self.order + 1, dtype=torch.float64)
        for n in range(self.steps):
            past = positions[max(n - self.order, 0) : n + 1].flip(0)
            data[n, : len(past)] = alpha[n + 1] * self._integrals(past, lambdas[n], lambdas[n + 1])
        return StepWeights((alpha[1:] / alpha[:-1])[:, None], data)

    def _integrals(self, nodes: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """Return int L_j dk from lambda = start to end for the Lagrange polynomials of the nodes."""
        lambdas, weights = self._quadrature(start, end)
        positions = self.schedule.inverse_lambda(lambdas) if self.variable == "time" else lambdas
        measure = -torch.exp(-lambdas) * weights  # dk = -exp(-lambda) d lambda
        integrals = []
        for j, node in enumerate(nodes):
            others = torch.cat([nodes[:j], nodes[j + 1 :]])
            lagrange = ((positions[:, None] - others) / (node - others)).prod(dim=1)
            integrals.append((lagrange * measure).sum())
        return torch.stack(integrals)

    def _quadrature(self, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        """Return nodes in lambda and their weights, on panels in which the schedule is smooth."""
        panels = math.ceil((end - start).item() / _PANEL)
        edges = torch.linspace(start.item(), end.item(), panels + 1, dtype=torch.float64)
        knots = getattr(self.schedule, "knots", None)  # of piecewise schedules
        if knots is not None:
            kinks = self.schedule.lambda_(knots(edges.device)[0])
            edges = torch.cat([edges, kinks[(kinks > start) & (kinks < end)]]).sort().values
        nodes, weights = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(_NODES))
        half = 0.5 * edges.diff()[:, None]
        middle = 0.5 * (edges[:-1] + edges[1:])[:, None]
        return (middle + half * nodes).flatten(), (half * weights).flatten()
