"""Pictures of a run: samples of validation seeds, and the learned times and weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gas_ext._utils.noise import image_grid, save_png
from gas_ext.denoisers import Denoiser
from gas_ext.sampler import GASSampler
from gas_ext.samples import SampleBatch
from gas_ext.solvers.generalized import GeneralizedSolver
from gas_ext.solvers.plots import plot_solver
from gas_ext.training.objective import Objective


class Pictures:
    """Draws into images/: teacher.png once, then grid-ITERATION.png and solver-ITERATION.png.

    Grids are drawn of `batch`, for teachers of images (1 or 3 channels, two axes). The solver is compared
    with `start`.
    """

    def __init__(
        self, folder: Path, denoiser: Denoiser, batch: SampleBatch, start: GeneralizedSolver, start_name: str
    ) -> None:
        self._folder = folder
        self._denoiser = denoiser
        self._batch = batch
        self._start, self._start_name = start, start_name

    @torch.no_grad()
    def draw(self, sampler: GASSampler, objective: Objective, iteration: int) -> None:
        """Draw the samples of the sampler's solver, and the solver itself."""
        teacher = self._folder / "teacher.png"
        if not teacher.is_file():
            self._grid(self._batch.samples, teacher)
        samples = objective.sample(self._batch.noise, self._batch.condition, sampler)
        self._grid(samples, self._folder / f"grid-{iteration:08d}.png")
        solver = sampler.solver
        assert isinstance(solver, GeneralizedSolver)
        plot_solver(
            solver,
            self._start,
            self._folder / f"solver-{iteration:08d}.png",
            start_name=self._start_name,
            title=f"After {iteration} iterations",
        )

    def _grid(self, samples: Tensor, path: Path) -> None:
        """Decode one by one, as decoders need far more memory than the solve, and write them as one image."""
        images = torch.cat([self._denoiser.decode(sample[None]).float().cpu() for sample in samples])
        if images.ndim == 4 and images.shape[1] in (1, 3):
            columns = max(1, round(len(images) ** 0.5))
            scale = 2 if images.shape[-1] < 64 else 1
            save_png(image_grid(images, columns), path, scale, truncate=self._denoiser.truncates)
