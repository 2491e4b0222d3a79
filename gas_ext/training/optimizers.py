"""Adam with a full second-moment matrix, for the few dozen parameters of a solver."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class FullMatrixAdam(Optimizer):
    """Adam whose second moment is a matrix over all parameters together.

    The parameters of a solver are strongly coupled: moving a time and correcting the weights after it nearly
    cancel, so coordinate by coordinate the loss surface is a long, bent valley in which Adam is slow. With m
    and S the bias-corrected averages of g and g g^T, d = sqrt(diag S) and C = S / (d d^T) the correlation of
    the gradients, the step is Adam's own step m / d, decorrelated:

        - rate * (C + damping I)^(-1/2) (m / d)

    In directions in which the gradients hardly vary, the step is up to damping^(-1/2) times longer, which is
    fast but can leave a narrow basin. With `shrink`, C is shrunk towards I by k / (k + n) after n gradients
    in k dimensions, so that the step is at most ((k + n) / k)^(1/2) times longer. Full-matrix preconditioning
    is due to AdaGrad (Duchi, Hazan and Singer, 2011), shrinkage of correlations to Ledoit and Wolf (2004).

    Parameters
    ----------
    params : iterable
        Parameters or parameter groups; each group has its own `lr`, and one matrix spans all groups.
    lr : float
        Default learning rate of the groups.
    betas : (float, float)
        Decays of the averages of g and of g g^T, each in [0, 1).
    damping : float
        Added to the eigenvalues of C, greater than 0; far above 1 the direction is Adam's.
    eps : float
        Added to d against division by zero.
    shrink : bool
        Whether to shrink C towards I, less with every gradient. Use it for a start in a narrow basin.

    Examples
    --------
    >>> x = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
    >>> optimizer = FullMatrixAdam([x], lr=0.1)
    >>> for _ in range(100):
    ...     optimizer.zero_grad()
    ...     (x.sum() ** 2 + 0.01 * x[0] ** 2).backward()
    ...     optimizer.step()
    >>> bool((x.abs() < 0.2).all())
    True
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.98),
        damping: float = 1e-3,
        eps: float = 1e-12,
        shrink: bool = False,
    ) -> None:
        if not lr >= 0:
            raise ValueError(f"lr is {lr}; expected a number of at least 0.")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas are {betas}; expected two numbers in [0, 1).")
        if not damping > 0:
            raise ValueError(f"damping is {damping}; expected a number greater than 0.")
        settings = {"lr": lr, "betas": betas, "damping": damping, "eps": eps, "shrink": shrink}
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters; one without a gradient counts as one with gradient 0."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        members = [(group, p) for group in self.param_groups for p in group["params"]]
        gradient = torch.cat([_flat_gradient(p) for _, p in members])
        group, first = members[0]
        # Stored in the state, so that a resumed run uses the same value.
        self.state[first].setdefault("shrink", group["shrink"])
        update = self._direction(self.state[first], gradient, group["betas"], group["damping"], group["eps"])
        offset = 0
        for group, p in members:
            piece = update[offset : offset + p.numel()].view_as(p)
            p.add_(piece.to(p.dtype), alpha=-group["lr"])
            offset += p.numel()
        return loss

    @staticmethod
    def _direction(
        state: dict[str, Any], gradient: Tensor, betas: tuple[float, float], damping: float, eps: float
    ) -> Tensor:
        """Update the averages in `state` and return the decorrelated step."""
        if "step" not in state:
            state["step"] = 0
            state["mean"] = torch.zeros_like(gradient)
            state["second"] = gradient.new_zeros(gradient.numel(), gradient.numel())
        state["step"] += 1
        state["mean"].lerp_(gradient, 1 - betas[0])
        state["second"].lerp_(torch.outer(gradient, gradient), 1 - betas[1])
        mean = state["mean"] / (1 - betas[0] ** state["step"])
        second = state["second"] / (1 - betas[1] ** state["step"])
        scale = second.diagonal().sqrt() + eps
        correlation = second / scale / scale[:, None]
        if state["shrink"]:
            unknown = len(gradient) / (len(gradient) + state["step"])
            correlation = (1 - unknown) * correlation + unknown * torch.eye(len(gradient), device="cpu").to(
                correlation
            )
        values, vectors = torch.linalg.eigh(correlation)
        root = (values.clamp_min(0) + damping).rsqrt()
        direction: Tensor = vectors @ (root * (vectors.T @ (mean / scale)))
        return direction


def _flat_gradient(parameter: Tensor) -> Tensor:
    gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return gradient.detach().to(torch.float64).reshape(-1)


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimizer's state by the parameter's index, without its settings."""
    return {str(number): entry for number, entry in optimizer.state_dict()["state"].items()}


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load such a state into an optimizer with the same parameters."""
    entries = {int(number): dict(entry) for number, entry in state.items()}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})
