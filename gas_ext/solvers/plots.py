"""A picture of a solver: its times and step weights, next to those of another one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gas_ext._utils.figures import (
    CLASSICAL_COLOR,
    GRID_COLOR,
    LEARNED_COLOR,
    MUTED_COLOR,
    clear_frame,
    new_figure,
    save_figure,
)
from gas_ext.solvers.generalized import GeneralizedSolver

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_solver(
    learned: GeneralizedSolver,
    classical: GeneralizedSolver,
    path: str | Path,
    *,
    classical_name: str = "classical",
    role: str = "classical",
    title: str = "",
) -> None:
    """Draw the learned times and step weights against those of a classical solver, or of another start.

    Parameters
    ----------
    learned, classical : GeneralizedSolver
        Two solvers of one schedule and number of steps.
    path : str or Path
        The PNG file.
    classical_name : str
        Name of the classical solver, in full.
    role : str
        What it is called in the legend: "classical", "start".
    title : str
        Heading.
    """
    if learned.steps != classical.steps:
        raise ValueError(
            f"solvers have {learned.steps} and {classical.steps} steps; expected the same number"
        )
    steps = learned.steps
    columns = min(steps, 4)
    rows = -(-steps // columns)
    width, times_height, weights_height = max(2.6 * columns, 8.0), 1.75, 2.15
    height = 1.0 + times_height + 0.7 + rows * (weights_height + 0.55) + 0.15
    figure = new_figure(width, height)
    figure.text(0.25 / width, 1 - 0.2 / height, title, fontsize=13, fontweight="bold", va="top")
    axes = figure.add_axes(
        (
            1.35 / width,
            1 - (0.75 + times_height) / height,
            (width - 1.65) / width,
            (times_height - 0.15) / height,
        )
    )
    _draw_times(axes, learned, classical, classical_name, role)
    every = [
        weight for solver in (learned, classical) for n in range(steps) for weight in _step_weights(solver, n)
    ]
    span = max(every) - min(every)
    limits = (min(*every, 0.0) - 0.06 * span, max(every) + 0.06 * span)
    cell = (width - 0.75) / columns
    for n in range(steps):
        left = 0.65 + (n % columns) * cell
        bottom = height - (0.75 + times_height + 0.9) - (n // columns + 1) * (weights_height + 0.55) + 0.55
        axes = figure.add_axes((left / width, bottom / height, (cell - 0.3) / width, weights_height / height))
        _draw_weights(axes, n, learned, classical, role, limits, first=n % columns == 0)
    save_figure(figure, path)


@torch.no_grad()
def _draw_times(
    axes: Axes, learned: GeneralizedSolver, classical: GeneralizedSolver, classical_name: str, role: str
) -> None:
    """Draw times on a log-SNR axis: one line per solver, and where the learned one evaluates the network."""
    schedule = learned.schedule

    def log_snr(times: Tensor) -> list[float]:
        values: list[float] = schedule.lambda_(times).cpu().tolist()
        return values

    lines = [
        (2, role, log_snr(classical.timesteps()), CLASSICAL_COLOR, "s", CLASSICAL_COLOR),
        (1, "learned", log_snr(learned.timesteps()), LEARNED_COLOR, "o", LEARNED_COLOR),
        (0, "learned,\nnetwork at", log_snr(learned.evaluation_timesteps()), LEARNED_COLOR, "^", "white"),
    ]
    for height, name, places, color, marker, face in lines:
        above = name == role
        axes.axhline(height, color=GRID_COLOR, linewidth=1, zorder=0)
        axes.plot(places, [height] * len(places), marker, color=color, markerfacecolor=face, markersize=8)
        for n, place in enumerate(places):
            axes.annotate(
                str(n),
                (place, height),
                (0, 8 if above else -8),
                textcoords="offset points",
                ha="center",
                va="bottom" if above else "top",
                fontsize=8,
                color=MUTED_COLOR,
            )
    for a, b in zip(lines[0][2], lines[1][2], strict=True):
        axes.plot([a, b], [1.85, 1.15], color=GRID_COLOR, linewidth=1, zorder=0)
    axes.set_yticks([height for height, *_ in lines], [name for _, name, *_ in lines], fontsize=9)
    axes.set_ylim(-0.75, 2.5)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel(
        r"$\lambda = \log(\alpha / \sigma)$      noise  $\leftarrow$   $\rightarrow$  image", fontsize=9
    )
    axes.set_title(f"Times of the states.  {role.capitalize()}: {classical_name}", fontsize=10, loc="left")
    clear_frame(axes)


@torch.no_grad()
def _draw_weights(
    axes: Axes,
    n: int,
    learned: GeneralizedSolver,
    classical: GeneralizedSolver,
    role: str,
    limits: tuple[float, float],
    first: bool,
) -> None:
    """Draw the weights of one update as pairs of bars: states x_n, x_{n-1}, ..., then predictions D_n, ..."""
    names = [f"$x_{{{n - i}}}$" for i in range(n + 1)] + [f"$D_{{{n - i}}}$" for i in range(n + 1)]
    places = [float(i) + (0.6 if i > n else 0.0) for i in range(len(names))]
    for solver, shift, color, name in (
        (classical, -0.2, CLASSICAL_COLOR, role),
        (learned, 0.2, LEARNED_COLOR, "learned"),
    ):
        heights = _step_weights(solver, n)
        axes.bar([p + shift for p in places], heights, width=0.4, color=color, label=name)
    axes.axhline(0, color=MUTED_COLOR, linewidth=0.8)
    axes.set_xticks(places, names, fontsize=8 if n < 4 else 6)
    axes.set_xlim(places[0] - 0.7, max(places[-1], 2.6) + 0.7)
    axes.set_ylim(*limits)
    axes.tick_params(length=0)
    axes.tick_params(axis="y", labelsize=8, labelleft=first)
    axes.grid(axis="y", color=GRID_COLOR, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_title(f"step {n}: weights of $x_{{{n + 1}}}$", fontsize=10, loc="left")
    if n == 0:
        axes.legend(fontsize=8, frameon=False, loc="upper right")
    clear_frame(axes)


@torch.no_grad()
def _step_weights(solver: GeneralizedSolver, n: int) -> list[float]:
    """Weights of x_n ... x_0, then of D_n ... D_0, in update n; zero beyond the solver's order."""
    weights = solver.weights()
    result: list[float] = []
    for table in (weights.state, weights.data):
        row = table[n, : n + 1].detach().cpu().tolist()
        result += row + [0.0] * (n + 1 - len(row))
    return result
