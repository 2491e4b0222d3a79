"""The samples of a run, split into training and validation, as batches on the network's device."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gas_ext._utils.processes import Processes
from gas_ext.denoisers import Denoiser
from gas_ext.samples import SampleBatch, ShuffledBatches
from gas_ext.samples.reading import Indices, SampleSource
from gas_ext.training.settings import TrainingConfig


class RunData:
    """Training samples (the first of a source) and validation samples (the next), shared by processes.

    Batches have encoded conditions, and decoded images if `images` is set. ValueError if the source has too
    few samples or no images.
    """

    def __init__(
        self,
        source: SampleSource,
        denoiser: Denoiser,
        config: TrainingConfig,
        train_samples: int,
        validation_samples: int,
        processes: Processes,
        *,
        images: bool = False,
    ) -> None:
        needed = train_samples + validation_samples
        where = getattr(source, "path", "The source")
        if len(source) < needed:
            raise ValueError(
                f"{where} holds {len(source)} samples, but training ({train_samples}) and validation "
                f"({validation_samples}) need {needed}; give other samples with --samples, or use fewer with "
                "--set training.train_samples=..."
            )
        if images and getattr(source, "image_shape", None) is None:
            raise ValueError(
                f"{where} holds latents without the decoded images that the loss {config.loss} compares; "
                "generate samples with gas-ext teach --images, or use l1."
            )
        self.train_samples = train_samples
        self.validation_samples = validation_samples
        self.device = denoiser.device
        self._source, self._denoiser, self._processes = source, denoiser, processes
        self._images = images
        self._order = ShuffledBatches(
            train_samples,
            config.batch_size,
            config.seed,
            rank=processes.rank,
            world_size=processes.count,
        )

    def training_batch(self, iteration: int) -> SampleBatch:
        """Return this process's part of an iteration's batch."""
        self._order.iteration = iteration
        return self._load(next(self._order))

    def validation_batches(self) -> Iterator[SampleBatch]:
        """Yield this process's part of the validation samples."""
        size = self._order.batch_size
        starts = range(self.train_samples, self.train_samples + self.validation_samples, size)
        for start in starts[self._processes.rank :: self._processes.count]:
            yield self._load(range(start, min(start + size, starts.stop)))

    def first_validation(self, count: int) -> SampleBatch:
        """Return the first validation samples, for pictures."""
        first = self.train_samples
        return self._load(range(first, first + min(count, self.validation_samples)))

    def first_training(self, count: int) -> SampleBatch:
        """Return the first training samples, to choose and fit the start on."""
        return self._load(range(min(count, self.train_samples)))

    @torch.no_grad()
    def _load(self, indices: Indices) -> SampleBatch:
        batch = self._source.batch(indices, images=self._images).to(self.device)
        return batch._replace(condition=self._denoiser.encode_condition(batch.condition))
