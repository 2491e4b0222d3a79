"""One chunk of seeds through one solver: samples, their distances to the teacher's, and their features."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from gas_ext._utils.modes import evaluating
from gas_ext._utils.noise import stacked_noise, to_uint8
from gas_ext.evaluation.chunks import ChunkResult, features_name
from gas_ext.evaluation.entries import Entry
from gas_ext.evaluation.metrics import l1_distances, l2_distances, perceptual_distances, psnr_values
from gas_ext.evaluation.setup import Chunk, Setup
from gas_ext.samples.draw import SampleRun, draw_samples


class ChunkSampler:
    """Runs one solver on chunks of seeds."""

    def __init__(self, setup: Setup, entry: Entry) -> None:
        self.setup = setup
        self.solver = entry.solver
        self.stores_samples = entry.kind == "teacher"
        self.device = setup.denoiser.device
        self._warm = False

    def run(
        self, chunk: Chunk, teacher: Tensor | None, advance: Callable[[int], object] = lambda amount: None
    ) -> ChunkResult:
        """Sample a chunk and compare it with the teacher's samples (on the CPU; None for the teacher itself).

        `advance` is called with the number of samples after each batch.
        """
        setup = self.setup
        parts: dict[str, list[Tensor]] = defaultdict(list)
        times: list[float] = []
        for start in range(chunk.rows.start, chunk.rows.stop, setup.batch_size):
            rows = range(start, min(start + setup.batch_size, chunk.rows.stop))
            run = self._sample(rows)
            if len(rows) == setup.full_batch:
                times += run.times
            part = slice(rows.start - chunk.rows.start, rows.stop - chunk.rows.start)
            target = None if teacher is None else teacher[part].to(self.device)
            with evaluating(setup.denoiser, self.device):  # without the network's autocast
                for name, value in self._compare(run.samples.float(), target).items():
                    parts[name].append(value.cpu())
                if start == 0:
                    parts["shown"].append(self._images(run.samples[: setup.shown].float()))
            advance(len(rows))
        record = {
            "nfe": run.nfe,
            "ms_per_image": times,
            "device": _device_name(self.device),
            "threads": torch.get_num_threads() if self.device.type == "cpu" else None,
        }
        return ChunkResult(record, {name: torch.cat(values).contiguous() for name, values in parts.items()})

    def _sample(self, rows: range) -> SampleRun:
        """Sample a batch; noise and conditions are ready before the clock starts."""
        setup, denoiser = self.setup, self.setup.denoiser
        noise = stacked_noise(setup.seeds[rows.start : rows.stop], denoiser.sample_shape, device=self.device)
        condition = setup.condition(rows)
        if isinstance(condition, Tensor):
            condition = condition.to(self.device)
        with evaluating(denoiser, self.device, setup.autocast):
            run = draw_samples(
                self.solver,
                denoiser,
                noise,
                denoiser.encode_condition(condition),
                guidance_scale=setup.guidance_scale,
                batch_size=len(rows),
                warm_up=not self._warm,
            )
        self._warm = True
        return run

    def _compare(self, samples: Tensor, teacher: Tensor | None) -> dict[str, Tensor]:
        """Return distances and features of a batch; all except L1 and L2 are of the decoded images."""
        setup = self.setup
        images = setup.denoiser.decode(samples).float()
        found = {features_name(extractor.name): extractor(images) for extractor in setup.extractors}
        if self.stores_samples:
            found["samples"] = samples
        if teacher is not None:
            target = setup.denoiser.decode(teacher).float()
            found["l1"] = l1_distances(samples, teacher)
            found["l2"] = l2_distances(samples, teacher)
            found["psnr"] = psnr_values(images, target)
            if setup.perceptual:
                found["perceptual"] = perceptual_distances(images, target, setup.feature_maps())
        return found

    def _images(self, samples: Tensor) -> Tensor:
        """Return images as uint8, or an empty tensor if the samples are not images."""
        images = self.setup.denoiser.decode(samples).float()
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            return torch.zeros(0, 1, 1, 1, dtype=torch.uint8)
        return to_uint8(images.nan_to_num(0.0), truncate=self.setup.denoiser.truncates).cpu()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
