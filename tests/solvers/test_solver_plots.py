import subprocess
import sys

import numpy as np
import pytest
from mixture import SCHEDULE
from PIL import Image, ImageColor

from gas_ext import GeneralizedSolver
from gas_ext._utils.figures import CLASSICAL_COLOR, LEARNED_COLOR
from gas_ext.solvers.plots import _step_weights, plot_solver


def has_color(path, color):
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    return bool((pixels == ImageColor.getrgb(color)).all(axis=-1).any())


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 4, 9])
def test_solver_picture(tmp_path, steps):
    learned, classical = (GeneralizedSolver(SCHEDULE, steps, timesteps=name) for name in ("edm", "quadratic"))
    plot_solver(learned, classical, tmp_path / "times.png", start_name="DPM-Solver++", title="title")
    assert has_color(tmp_path / "times.png", CLASSICAL_COLOR)
    assert has_color(tmp_path / "times.png", LEARNED_COLOR)


def test_solver_picture_needs_equal_steps(tmp_path):
    with pytest.raises(ValueError, match="the same number"):
        plot_solver(GeneralizedSolver(SCHEDULE, 3), GeneralizedSolver(SCHEDULE, 4), tmp_path / "x.png")


def test_bars_are_the_weights_of_the_step():
    """The untrained second-order step: sigma ratio on x_n, and data weights that sum to a consistent step."""
    solver = GeneralizedSolver(SCHEDULE, 3, order=2, theory_order=2, timesteps="logsnr")
    times = solver.timesteps().detach()
    alpha, sigma = SCHEDULE.alpha(times), SCHEDULE.sigma(times)
    for n in range(3):
        weights = _step_weights(solver, n)
        assert len(weights) == 2 * (n + 1)
        ratio = (sigma[n + 1] / sigma[n]).item()
        assert weights[0] == pytest.approx(ratio)
        assert sum(weights[n + 1 :]) == pytest.approx((alpha[n + 1] - ratio * alpha[n]).item())


@pytest.mark.process
def test_importing_plots_does_not_import_matplotlib():
    code = "import sys, gas_ext.solvers.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
