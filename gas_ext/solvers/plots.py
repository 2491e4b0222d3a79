"""A plot of the timesteps and step weights of a learned solver and of its start."""

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
    start: GeneralizedSolver,
    path: str | Path,
    *,
    start_name: str = "",
    title: str = "",
) -> None:
    """Draw timesteps and step weights of a learned solver and of the one it started from, as a PNG file."""
    if learned.steps != start.steps:
        raise ValueError(
            f"Cannot compare solvers of {learned.steps} and {start.steps} steps; pass the same number."
        )
    steps = learned.steps
    columns = min(steps, 4)
    rows = -(-steps // columns)
    figure = new_figure(max(2.6 * columns, 8.0), 2.6 + 2.7 * rows)
    figure.set_layout_engine("constrained", h_pad=0.08, w_pad=0.08, hspace=0.06)
    figure.suptitle(title, x=0.02, ha="left", fontsize=13, fontweight="bold")
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=[1.75, *[2.15] * rows])
    _draw_times(figure.add_subplot(grid[0, :]), learned, start, start_name)
    every = [
        weight for solver in (learned, start) for n in range(steps) for weight in _step_weights(solver, n)
    ]
    span = max(every) - min(every)
    limits = (min(*every, 0.0) - 0.06 * span, max(every) + 0.06 * span)
    for n in range(steps):
        axes = figure.add_subplot(grid[1 + n // columns, n % columns])
        _draw_weights(axes, n, learned, start, limits, first=n % columns == 0)
    save_figure(figure, path)


@torch.no_grad()
def _draw_times(axes: Axes, learned: GeneralizedSolver, start: GeneralizedSolver, start_name: str) -> None:
    """Draw timesteps on a log-SNR axis, and where the learned solver evaluates the network."""
    schedule = learned.schedule

    def log_snr(times: Tensor) -> list[float]:
        values: list[float] = schedule.lambda_(times).cpu().tolist()
        return values

    lines = [
        (2, "start", log_snr(start.timesteps()), CLASSICAL_COLOR, "s", CLASSICAL_COLOR),
        (1, "learned", log_snr(learned.timesteps()), LEARNED_COLOR, "o", LEARNED_COLOR),
        (0, "learned,\nnetwork at", log_snr(learned.evaluation_timesteps()), LEARNED_COLOR, "^", "white"),
    ]
    for height, name, positions, color, marker, face in lines:
        above = name == "start"
        axes.axhline(height, color=GRID_COLOR, linewidth=1, zorder=0)
        axes.plot(
            positions, [height] * len(positions), marker, color=color, markerfacecolor=face, markersize=8
        )
        for n, position in enumerate(positions):
            axes.annotate(
                str(n),
                (position, height),
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
    axes.set_title(f"Times of the states.  Start: {start_name}", fontsize=10, loc="left")
    clear_frame(axes)


@torch.no_grad()
def _draw_weights(
    axes: Axes,
    n: int,
    learned: GeneralizedSolver,
    start: GeneralizedSolver,
    limits: tuple[float, float],
    first: bool,
) -> None:
    """Draw the weights of one update as pairs of bars: states x_n, x_{n-1}, ..., then predictions D_n, ..."""
    names = [f"$x_{{{n - i}}}$" for i in range(n + 1)] + [f"$D_{{{n - i}}}$" for i in range(n + 1)]
    positions = [float(i) + (0.6 if i > n else 0.0) for i in range(len(names))]
    bars = [(start, -0.2, CLASSICAL_COLOR, "start"), (learned, 0.2, LEARNED_COLOR, "learned")]
    for solver, shift, color, name in bars:
        heights = _step_weights(solver, n)
        axes.bar([p + shift for p in positions], heights, width=0.4, color=color, label=name)
    axes.axhline(0, color=MUTED_COLOR, linewidth=0.8)
    axes.set_xticks(positions, names, fontsize=8 if n < 4 else 6)
    axes.set_xlim(positions[0] - 0.7, max(positions[-1], 2.6) + 0.7)
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
    """Return the weights of x_n ... x_0, then of D_n ... D_0, in update n; zero beyond the solver's order."""
    weights = solver.weights()
    result: list[float] = []
    for table in (weights.state, weights.data):
        row = table[n, : n + 1].detach().cpu().tolist()
        result += row + [0.0] * (n + 1 - len(row))
    return result
