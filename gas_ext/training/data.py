"""The samples of a run: which are learned from, which are judged on, and how they become batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gas_ext._utils.processes import Processes
from gas_ext.denoisers import Denoiser
from gas_ext.samples import SampleBatch, ShuffledBatches
from gas_ext.samples.reading import SampleSource
from gas_ext.training.batches import Batch
from gas_ext.training.settings import TrainingConfig


class RunData:
    """Training samples (the first of a source) and validation samples (the next), on the network's device.

    Parameters
    ----------
    source : SampleSource
        Where they come from, e.g. `TeacherSamples`.
    denoiser : Denoiser
        Encodes their conditions.
    config : TrainingConfig
        Batch size and seed.
    train_samples, validation_samples : int
        How many of each.
    processes : Processes
        Those that share them.
    images : bool
        Whether decoded images are compared instead of latents.
    fresh_noise : bool
        Whether batches have noise for the discriminator's fakes.
    labels : bool
        Whether the discriminator gets the labels.

    Raises
    ------
    ValueError
        If there are too few samples, decoded images are needed but not there, or the batch cannot be shared
        equally.
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
        fresh_noise: bool = False,
        labels: bool = False,
    ) -> None:
        wanted = train_samples + validation_samples
        where = getattr(source, "path", "The source")
        if len(source) < wanted:
            raise ValueError(
                f"{where} holds {len(source)} samples, but training ({train_samples}) and validation "
                f"({validation_samples}) need {wanted}: give other samples (--samples), or ask for fewer "
                "(--set training.train_samples=...)."
            )
        if images and getattr(source, "image_shape", None) is None:
            raise ValueError(
                f"{where} holds latents without their images, which the loss {config.loss} compares; make "
                "samples with gas-ext teach --images, or use l1."
            )
        self.train_samples = train_samples
        self.validation_samples = validation_samples
        self._source, self._denoiser, self._processes = source, denoiser, processes
        self._images, self._fresh_noise, self._labels = images, fresh_noise, labels
        self._seed = config.seed
        self._order = ShuffledBatches(
            train_samples,
            config.batch_size,
            config.seed,
            rank=processes.rank,
            world_size=processes.count,
        )
        self._size = self._order.batch_size

    def training_batch(self, iteration: int) -> Batch:
        """Return this process's part of an iteration's batch, which follows from seed and number alone."""
        self._order.iteration = iteration
        batch = self._load(next(self._order))
        if not self._fresh_noise:
            return batch
        share = self._size // self._processes.count
        positions = range(self._processes.rank * share, (self._processes.rank + 1) * share)
        return batch.with_fresh_noise(self._seed, iteration, positions)

    @property
    def device(self) -> torch.device:
        """Where the batches are."""
        return self._denoiser.device

    def validation_batches(self) -> Iterator[Batch]:
        """Yield this process's share of the validation samples."""
        starts = range(self.train_samples, self.train_samples + self.validation_samples, self._size)
        for start in starts[self._processes.rank :: self._processes.count]:
            yield self._load(range(start, min(start + self._size, starts.stop)))

    def shown(self, count: int) -> Batch:
        """Return the first validation samples, for pictures."""
        first = self.train_samples
        return self._load(range(first, first + min(count, self.validation_samples)))

    def first(self, count: int) -> Batch:
        """Return the first training samples, to choose and fit the start on."""
        return self._load(range(min(count, self.train_samples)))

    @torch.no_grad()
    def _load(self, indices: Any) -> Batch:
        loaded: SampleBatch = self._source.batch(indices, images=self._images).to(self._denoiser.device)
        return Batch(
            noise=loaded.noise,
            target=loaded.samples,
            condition=self._denoiser.encode_condition(loaded.condition),
            images=loaded.images,
            labels=loaded.condition if self._labels and isinstance(loaded.condition, Tensor) else None,
        )
