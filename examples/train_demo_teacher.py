"""Train the teacher that ships with gas_ext: a small diffusion denoiser on Fashion-MNIST.

Three stages; the first two resume from their checkpoints, the last one starts over:

    denoiser    EDM loss (Karras et al. 2022), warm-up / constant / linear-decay learning rate, EMA
    features    a small classifier whose features give the Frechet distance
    finish      10,000 teacher samples, reference statistics, sample grid and the card

The data is the Debian package `dataset-fashion-mnist` (MIT licence, Zalando Research)::

    apt-get install dataset-fashion-mnist
    python examples/train_demo_teacher.py --out my-teacher

Every random draw depends only on the seed and the step number, so a resumed run gives the same bits as an
uninterrupted one (on the same machine, with the same number of threads).
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import math
import os
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import Progress
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gas_ext._utils.noise import image_grid, save_png, seed_labels, stacked_noise
from gas_ext.evaluation.metrics import Statistics, StreamingStatistics, frechet_distance
from gas_ext.sampler import GASSampler
from gas_ext.solvers.generalized import GeneralizedSolver
from gas_ext.teachers.demo import DemoFeatures, DemoTeacher, load_demo_features, load_demo_teacher
from gas_ext.teachers.demo_network import DemoNetwork, DemoNetworkConfig
from gas_ext.teachers.features import FeatureNetwork

Loss = Callable[[nn.Module, int], Tensor]  # of the module and the step, from which all randomness derives

DEFAULT_DATA = Path("/usr/share/datasets/fashion-mnist")
DEFAULT_OUT = Path(__file__).resolve().parents[1] / "gas_ext" / "teachers" / "weights" / "demo"


# ---------------------------------------------------------------------------------------------- data


def read_idx(path: Path) -> np.ndarray:
    """Read one gzip-compressed IDX file of unsigned bytes."""
    if not path.is_file():
        raise SystemExit(
            f"{path} is missing; install the Debian package dataset-fashion-mnist or name the folder of the "
            "four IDX files with --data."
        )
    content = gzip.decompress(path.read_bytes())
    magic, dimensions = struct.unpack(">HBB", content[:4])[0:2], content[3]
    if magic != (0, 8):
        raise SystemExit(f"{path} is not an IDX file of unsigned bytes.")
    shape = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def load_images(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Return images (N, 1, 32, 32) as uint8, padded with black, and labels (N,) as int64."""
    images = torch.from_numpy(read_idx(folder / f"{split}-images-idx3-ubyte.gz").copy())
    labels = torch.from_numpy(read_idx(folder / f"{split}-labels-idx1-ubyte.gz").astype(np.int64))
    pad = (32 - images.shape[-1]) // 2
    return F.pad(images[:, None], (pad, pad, pad, pad)), labels


def to_unit_range(images: Tensor) -> Tensor:
    """Map bytes to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def generator_for(seed: int, stream: int, step: int) -> torch.Generator:
    """Return the generator of one step: every draw depends on (seed, stream, step) alone."""
    return torch.Generator().manual_seed((seed * 16 + stream) * 2**32 + step)


def batch_indices(count: int, batch_size: int, seed: int, step: int) -> Tensor:
    """Return the indices of batch `step`: each epoch is a fresh permutation without the remainder."""
    per_epoch = max(1, count // batch_size)
    order = torch.randperm(count, generator=generator_for(seed, 0, step // per_epoch))
    start = (step % per_epoch) * batch_size
    return order[start : start + batch_size]


# ---------------------------------------------------------------------------------------- common loop


class Ema:
    """Power-function average of parameters: weight of step s grows as s ** gamma (Karras et al. 2024)."""

    def __init__(self, module: nn.Module, gamma: float = 10.0) -> None:
        self.gamma = gamma
        self.averages = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Blend in the parameters after `step` steps, counted from 1."""
        weight = 1 - (1 - 1 / step) ** (self.gamma + 1)
        parameters = [p.detach() for p in module.parameters()]
        torch._foreach_lerp_(list(self.averages.values()), parameters, weight)


def learning_rate(step: int, steps: int, peak: float, warmup: int = 500, decay: float = 0.4) -> float:
    """Warm up linearly, stay at the peak, fall linearly to 0 over the last `decay` of all steps."""
    return peak * min(1.0, (step + 1) / warmup, (steps - step) / (decay * steps))


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Write through a temporary name, so that a killed run leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    os.replace(temporary, path)


def write_tensors(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    """Write a safetensors file, atomically."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata))
    path.chmod(0o644)


class Trainer:
    """A training loop with EMA. Its checkpoint holds everything that the next step depends on.

    Parameters
    ----------
    module : nn.Module
        What is trained.
    loss : callable
        ``loss(module, step) -> Tensor``; it must draw its randomness from `step`.
    steps : int
        Total number of steps; the learning rate reaches 0 there.
    peak : float
        Highest learning rate of Adam.
    checkpoint : Path
        File of the training state. If it exists, training resumes.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        steps: int,
        peak: float,
        checkpoint: Path,
        warmup: int = 500,
    ) -> None:
        self.module, self.loss, self.steps, self.peak, self.warmup = module, loss, steps, peak, warmup
        self.checkpoint = checkpoint
        self.optimizer = torch.optim.Adam(module.parameters(), lr=peak, betas=(0.9, 0.99), fused=True)
        self.ema = Ema(module)
        self.step, self.seconds, self.average_loss = 0, 0.0, math.nan
        if checkpoint.is_file():
            self._resume()

    def _resume(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True)
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.averages = state["ema"]
        self.step, self.seconds, self.average_loss = state["step"], state["seconds"], state["average_loss"]
        print(f"resumed {self.checkpoint} at step {self.step}", flush=True)

    def save(self) -> None:
        """Write the checkpoint."""
        state = {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.averages,
            "step": self.step,
            "seconds": self.seconds,
            "average_loss": self.average_loss,
        }
        write_atomically(self.checkpoint, lambda path: torch.save(state, path))

    def one_step(self) -> float:
        """Take one optimizer step and return its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.steps, self.peak, self.warmup)
        self.optimizer.zero_grad()
        loss = self.loss(self.module, self.step)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        self.ema.update(self.module, self.step)
        return loss.item()

    def averaged_state(self) -> dict[str, Tensor]:
        """Return the module's state with the EMA in place of the parameters."""
        return {**self.module.state_dict(), **self.ema.averages}

    def summary(self) -> dict[str, str]:
        """Return the facts about this run that the weights file records."""
        return {
            "step": str(self.step),
            "steps": str(self.steps),
            "seconds": f"{self.seconds:.0f}",
            "loss": f"{self.average_loss:.5f}",
            "threads": str(torch.get_num_threads()),
            "torch": torch.__version__,
        }

    def run(self, title: str, save_every: int = 500, stop_at: int | None = None) -> None:
        """Train up to `stop_at` (default: all steps), saving every `save_every` steps and at the end."""
        end = min(self.steps, self.steps if stop_at is None else stop_at)
        for _ in track(range(self.step, end), title, self.steps):
            started = time.perf_counter()
            loss = self.one_step()
            self.seconds += time.perf_counter() - started
            # Average over about the last 500 steps; the first value starts it.
            self.average_loss = loss if self.step == 1 else 0.998 * self.average_loss + 0.002 * loss
            if self.step % 200 == 0:
                print(
                    f"{title} step {self.step} loss {self.average_loss:.5f} seconds {self.seconds:.0f}",
                    flush=True,
                )
            if self.step % save_every == 0 or self.step == end:
                self.save()


def track(steps: range, title: str, total: int) -> Iterator[int]:
    """Iterate with a progress bar, shown on a terminal only."""
    with Progress(transient=True, disable=not sys.stdout.isatty()) as progress:
        task = progress.add_task(title, total=total, completed=steps.start)
        for step in steps:
            yield step
            progress.advance(task)


# ------------------------------------------------------------------------------------------- denoiser


def denoiser_loss(
    images: Tensor, labels: Tensor, batch_size: int, seed: int
) -> Callable[[nn.Module, int], Tensor]:
    """Return the EDM loss: mean |D(x + sigma n, sigma, label) - x|^2 / c_out^2.

    log sigma is normal with mean -0.6 and standard deviation 1.6 (wider than EDM's, because the sampler
    starts at sigma = 152), one draw from each of `batch_size` equally probable bins, which lowers the
    variance of the gradient. Labels are dropped with probability 0.12.
    """

    def loss(module: nn.Module, step: int) -> Tensor:
        assert isinstance(module, DemoNetwork)
        index = batch_indices(len(images), batch_size, seed, step)
        generator = generator_for(seed, 1, step)
        clean, classes = to_unit_range(images[index]), labels[index]
        quantile = (torch.arange(len(index)) + torch.rand(len(index), generator=generator)) / len(index)
        sigma = torch.exp(-0.6 + 1.6 * torch.special.ndtri(quantile.clamp(1e-5, 1 - 1e-5)))
        noisy = clean + sigma[:, None, None, None] * torch.randn(clean.shape, generator=generator)
        dropped = torch.rand(len(index), generator=generator) < 0.12
        classes = torch.where(dropped, module.config.num_classes, classes)
        with torch.autocast("cpu", torch.bfloat16):
            denoised = module(noisy, sigma, classes)
        weight = 1 / sigma**2 + 1 / module.config.sigma_data**2
        error: Tensor = (denoised.float() - clean).square().mean(dim=(1, 2, 3))
        return (weight * error).mean()

    return loss


def train_denoiser(args: argparse.Namespace) -> Trainer:
    """Train the denoiser, or resume, and write its EMA weights regularly and at the end."""
    images, labels = load_images(args.data, "train")
    torch.manual_seed(args.seed)
    config = DemoNetworkConfig(sigma_data=round(to_unit_range(images).std().item(), 4))
    loss = denoiser_loss(images, labels, args.batch_size, args.seed)
    trainer = Trainer(DemoNetwork(config), loss, args.steps, 1e-3, args.checkpoints / "denoiser.pt")
    while trainer.step < trainer.steps:
        trainer.run("denoiser", stop_at=trainer.step + args.snapshot_every)
        write_denoiser(trainer, config, args.batch_size, args.out / "denoiser.safetensors")
    write_denoiser(trainer, config, args.batch_size, args.out / "denoiser.safetensors")
    return trainer


def write_denoiser(trainer: Trainer, config: DemoNetworkConfig, batch_size: int, path: Path) -> None:
    """Write the EMA weights with the configuration in the metadata."""
    metadata = {"config": json.dumps(config.to_dict()), "batch_size": str(batch_size), **trainer.summary()}
    write_tensors(trainer.averaged_state(), metadata, path)


# ------------------------------------------------------------------------------------------- features


def features_loss(images: Tensor, labels: Tensor, seed: int) -> Loss:
    """Return the cross entropy, labels smoothed by 0.05 and features dropped with probability 0.2."""

    def loss(module: nn.Module, step: int) -> Tensor:
        assert isinstance(module, FeatureNetwork)
        index = batch_indices(len(images), 128, seed + 1, step)
        torch.manual_seed(seed * 2**32 + step)  # for the dropout
        with torch.autocast("cpu", torch.bfloat16):
            logits = module.logits(to_unit_range(images[index]), dropout=0.2)
        return F.cross_entropy(logits.float(), labels[index], label_smoothing=0.05)

    return loss


def train_features(args: argparse.Namespace) -> None:
    """Train the feature network, write its EMA weights and its accuracy on the 10,000 test images."""
    images, labels = load_images(args.data, "train")
    torch.manual_seed(args.seed)
    network = FeatureNetwork()
    loss = features_loss(images, labels, args.seed)
    trainer = Trainer(network, loss, args.feature_steps, 2e-3, args.checkpoints / "features.pt", warmup=100)
    trainer.run("features")
    network.load_state_dict(trainer.averaged_state())
    accuracy = test_accuracy(network, *load_images(args.data, "t10k"))
    print(f"{network.name}: test accuracy {accuracy:.4f}", flush=True)
    metadata = {
        "name": network.name,
        "batch_size": "128",
        "test_accuracy": f"{accuracy:.4f}",
        **trainer.summary(),
    }
    write_tensors(trainer.averaged_state(), metadata, args.out / "features.safetensors")


@torch.no_grad()
def test_accuracy(network: FeatureNetwork, images: Tensor, labels: Tensor) -> float:
    """Return the fraction of correctly classified images."""
    batches = zip(torch.split(images, 500), torch.split(labels, 500), strict=True)
    hits = [int((network.logits(to_unit_range(x)).argmax(1) == y).sum()) for x, y in batches]
    return sum(hits) / len(images)


# --------------------------------------------------------------------------------------------- finish


@torch.no_grad()
def teacher_samples(teacher: DemoTeacher, seeds: range, evaluations: int = 20) -> Iterator[Tensor]:
    """Yield samples in batches of 50: DPM-Solver++(3M) on logSNR times, label = seed % 10."""
    solver = GeneralizedSolver(
        teacher.schedule, evaluations, order=3, t_eps=teacher.t_eps, timesteps="logsnr"
    )
    sampler = GASSampler(solver, teacher, prediction_type=teacher.prediction_type)
    starts = range(0, len(seeds), 50)
    for start in track(starts, "teacher samples", len(starts)):
        chunk = seeds[start : start + 50]
        noise = stacked_noise(chunk, teacher.sample_shape)
        samples = sampler(noise, seed_labels(chunk, teacher.num_classes))
        assert isinstance(samples, Tensor)
        yield samples


@torch.no_grad()
def statistics_of(features: DemoFeatures, batches: Iterable[Tensor]) -> Statistics:
    """Return mean, covariance and count of the features of image batches."""
    stream = StreamingStatistics()
    for batch in batches:
        stream.update(features(batch))
    return stream.result()


def finish(args: argparse.Namespace) -> None:
    """Write the reference statistics, the sample grid and the card."""
    teacher = load_demo_teacher(folder=args.out)
    features = load_demo_features(folder=args.out)
    images, _ = load_images(args.data, "train")
    test_images, _ = load_images(args.data, "t10k")
    data = statistics_of(features, (to_unit_range(x) for x in torch.split(images, 500)))
    test = statistics_of(features, (to_unit_range(x) for x in torch.split(test_images, 500)))
    seeds = range(100_000, 100_000 + args.samples)
    sampled = statistics_of(features, teacher_samples(teacher, seeds))
    tensors = {}
    metadata = {"features": features.name}
    for key, statistics in (("data", data), ("teacher", sampled)):
        tensors[f"{key}.mean"], tensors[f"{key}.covariance"] = statistics[:2]
        metadata[f"{key}.count"] = str(statistics[2])
    write_tensors(tensors, metadata, args.out / "statistics.safetensors")
    grid = image_grid(torch.cat(list(teacher_samples(teacher, range(100)))), columns=10)
    save_png(grid, args.out / "samples.png", scale=2)
    facts = {
        "frechet_teacher": frechet_distance(*sampled[:2], *data[:2]),
        "frechet_test": frechet_distance(*test[:2], *data[:2]),
        "samples": sampled[2],
        "note": args.note,
        "parameters": sum(p.numel() for p in teacher.parameters()),
        "feature_parameters": sum(p.numel() for p in features.parameters()),
    }
    card = write_card(args.out, facts)
    write_atomically(args.out / "README.md", lambda path: path.write_text(card))
    print(card)


def write_card(folder: Path, facts: dict[str, Any]) -> str:
    """Return the card of a weights folder in Markdown."""
    about: dict[str, dict[str, str]] = {}
    hashes = []
    for name in ("denoiser", "features", "statistics"):
        path = folder / f"{name}.safetensors"
        with safe_open(path, framework="pt") as file:
            about[name] = file.metadata()
        content = path.read_bytes()
        hashes.append(f"| {path.name} | {len(content):,} | `{hashlib.sha256(content).hexdigest()}` |")
    return CARD.format(
        denoiser=about["denoiser"],
        features=about["features"],
        config=json.loads(about["denoiser"]["config"]),
        hashes="\n".join(hashes),
        **facts,
    )


CARD = """# The demo teacher

A small class-conditional diffusion denoiser of 32x32 grey images of clothes, the feature network that
distances are computed in, and reference statistics. Load them with `gas_ext.teachers.load_demo_teacher`,
`load_demo_features` and `load_demo_statistics`. The same license as the package (Apache-2.0).

![Teacher samples, seeds 0-99, one class per column](samples.png)

## Data
Fashion-MNIST (Zalando Research, MIT license; Debian package `dataset-fashion-mnist`): 60,000 training images
of 28x28, padded with black to 32x32, scaled to [-1, 1] (standard deviation {config[sigma_data]}), not
augmented. Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747. Columns of the grid: T-shirt, trouser, pullover,
dress, coat, sandal, shirt, sneaker, bag, ankle boot.

## Denoiser
- U-Net on 2x2-folded images: resolutions 16, 8, 4 with channels {config[channels]}, self-attention at 8x8;
  {parameters:,} parameters in float32. EDM preconditioning. Labels 0-9; 10 = no label (dropped with
  probability 0.12 in training, for guidance).
- EDM loss with log sigma ~ N(-0.6, 1.6^2), Adam, batch {denoiser[batch_size]}, {denoiser[steps]} steps,
  peak rate 1e-3 falling to 0 over the last 40 %, EMA with power 10, bfloat16 autocast.
- Trained in {denoiser[seconds]} seconds with {denoiser[threads]} thread(s) on a shared 2-core machine.
  Loss at the end (average over about 500 steps): {denoiser[loss]}.

## Features: `{features[name]}`
Six convolutions, {feature_parameters:,} parameters, 64 features. {features[steps]} steps of batch
{features[batch_size]} in {features[seconds]} seconds; test accuracy {features[test_accuracy]}. Its Frechet
distances are not FID scores.

## Statistics
Features of the 60,000 training images and of {samples:,} teacher samples (seeds 100000 upwards,
label = seed % 10, DPM-Solver++(3M), 20 evaluations, logSNR times, t_eps 1e-3).

| Frechet distance to the training images (`{features[name]}`) | |
|---|---|
| teacher samples | {frechet_teacher:.4f} |
| the 10,000 test images, for scale | {frechet_test:.4f} |

## Files
| file | bytes | SHA-256 |
|---|---|---|
{hashes}

## To reproduce
    export OMP_NUM_THREADS={denoiser[threads]}
    python examples/train_demo_teacher.py --steps {denoiser[steps]} --out DIR

The same bits need the same kind of processor, torch {denoiser[torch]} and the same number of threads.
{note}
"""


# ----------------------------------------------------------------------------------------------- main


STAGES = {"denoiser": train_denoiser, "features": train_features, "finish": finish}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the requested stages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder of the four IDX files")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder of the weights")
    parser.add_argument("--checkpoints", type=Path, default=Path("teacher-checkpoints"), help="resume folder")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--steps", type=int, default=10000, help="optimizer steps of the denoiser")
    parser.add_argument("--feature-steps", type=int, default=3000, help="optimizer steps of the features")
    parser.add_argument("--batch-size", type=int, default=64, help="of the denoiser's training")
    parser.add_argument("--samples", type=int, default=10_000, help="teacher samples for the statistics")
    parser.add_argument("--snapshot-every", type=int, default=500, help="write the EMA weights this often")
    parser.add_argument("--note", default="", help="a remark for the end of the card")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    for stage in args.stages:
        STAGES[stage](args)


if __name__ == "__main__":
    main()
