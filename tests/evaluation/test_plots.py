import numpy as np
import pytest
import torch
from mixture import SCHEDULE
from PIL import Image

from gas_ext import GeneralizedSolver
from gas_ext._utils.figures import CLASSICAL_COLOR, LEARNED_COLOR
from gas_ext._utils.noise import to_uint8
from gas_ext.evaluation import Row
from gas_ext.evaluation.plots import Strip, plot_samples
from gas_ext.solvers.plots import _step_weights, plot_solver

ROWS = [
    Row("teacher", "DPM-Solver++(3M), logSNR times", 20, 0.0, 0.2, 0.8, 20.0),
    Row("classical", "DPM-Solver++(2M), quadratic times", 4, 0.06, 4.2, 5.8, 4.0),
    Row("learned", "learned", 4, 0.03, 0.9, 1.8, 4.0),
]


def rgb(color):
    return tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def has_color(picture, color):
    return bool((picture == np.array(color, dtype=np.uint8)).all(axis=-1).any())


@pytest.mark.parametrize(("count", "channels"), [(1, 1), (7, 3), (20, 1)])
def test_sample_picture_shows_every_image(tmp_path, count, channels):
    levels = torch.linspace(-0.9, 0.9, 3 * count).view(3, count, 1, 1, 1).expand(3, count, channels, 8, 8)
    strips = [Strip(row, images) for row, images in zip(ROWS, levels, strict=True)]
    plot_samples(strips, tmp_path / "samples.png", title="title")
    picture = pixels(tmp_path / "samples.png")
    for level in to_uint8(levels[:, :, 0, 0, 0]).flatten().tolist():
        assert has_color(picture, (level,) * 3)
    assert tuple(picture[0, 0]) == (255, 255, 255)
    assert has_color(picture, rgb(CLASSICAL_COLOR))
    assert [file.name for file in tmp_path.iterdir()] == ["samples.png"]


def test_strips_must_share_their_seeds(tmp_path):
    with pytest.raises(ValueError, match="same seeds"):
        plot_samples(
            [Strip(ROWS[0], torch.zeros(2, 1, 4, 4)), Strip(ROWS[1], torch.zeros(3, 1, 4, 4))],
            tmp_path / "x.png",
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_solver_picture(tmp_path, steps):
    learned, classical = (GeneralizedSolver(SCHEDULE, steps, timesteps=name) for name in ("edm", "quadratic"))
    plot_solver(learned, classical, tmp_path / "times.png", classical_name="DPM-Solver++", title="title")
    picture = pixels(tmp_path / "times.png")
    assert has_color(picture, rgb(CLASSICAL_COLOR))
    assert has_color(picture, rgb(LEARNED_COLOR))


def test_solver_picture_needs_equal_steps(tmp_path):
    with pytest.raises(ValueError, match="same number"):
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


def test_importing_plots_does_not_import_matplotlib():
    import subprocess
    import sys

    code = "import sys, gas_ext.evaluation.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
