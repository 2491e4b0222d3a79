"""The paper's claims (arXiv 2510.17699), checked on a small scale: the embedded teacher, several seeds.

    python benchmarks/paper_claims.py --steps 4 --seeds 0 1 2 -o claims

Every seed has separate training samples; all are evaluated on the same held-out seeds. Prints a Markdown
table of means over the seeds with standard deviations, and writes all numbers to results.json. Run the same
command again to resume.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from training_recipes import finished, make_parser, make_samples

from gas_ext import GeneralizedSolver
from gas_ext._utils.files import write_file
from gas_ext._utils.noise import seed_labels, stacked_noise
from gas_ext._utils.progress import make_reporter
from gas_ext.configs import load_config
from gas_ext.denoisers import Denoiser
from gas_ext.evaluation import draw_samples
from gas_ext.evaluation.features import FeatureExtractor, load_features
from gas_ext.evaluation.metrics import Reference, l1_distance, measure
from gas_ext.teachers.folder import load_teacher
from gas_ext.training import train

SAMPLES = 1400  # except for variants with another number; paper, section 5
VALIDATION = 128

# Loss, and overrides of the demo's config.
VARIANTS: dict[str, tuple[str, list[str]]] = {
    "GS": ("gs", []),
    "GAS": ("gas", []),
    "GAS, ordinary loss": ("gas", ["adversarial.loss=gan"]),
    "GAS, samples alone": ("gas", ["adversarial.noise_levels=[]"]),
    "GS, no theory": ("gs", ["student.preset=s4s-alt"]),
    "GS, classical start": ("gs", ["training.start=classical"]),
    "GS, 16 samples": ("gs", ["training.train_samples=16"]),
    "GS, 64 samples": ("gs", ["training.train_samples=64"]),
    "GS, 256 samples": ("gs", ["training.train_samples=256"]),
}
FEATURES = ("demo", "efficientnet-lite0")


class Judge:
    """Measures solvers on held-out seeds, against features of the teacher's samples from other seeds."""

    def __init__(self, denoiser: Denoiser, count: int, folder: Path) -> None:
        config = load_config("demo")
        first = 50_000  # seeds.evaluation of the config
        teacher = config.teacher_solver.build(denoiser.schedule, 4).to(denoiser.device)
        self._denoiser = denoiser
        self._noise = stacked_noise(range(first, first + count), denoiser.sample_shape).to(denoiser.device)
        self._labels = seed_labels(range(first, first + count), 10).to(denoiser.device)
        others = range(first + count, first + 2 * count)
        noise = stacked_noise(others, denoiser.sample_shape).to(denoiser.device)
        self._target = self._stored(folder / "target.safetensors", teacher, self._noise, self._labels)
        other = self._stored(
            folder / "other.safetensors", teacher, noise, seed_labels(others, 10).to(denoiser.device)
        )
        self._extractors = [load_features(name, denoiser.device) for name in FEATURES]
        self._references = [
            Reference.from_features("teacher, other seeds", _features(extractor, other), extractor.describe())
            for extractor in self._extractors
        ]

    def _stored(self, path: Path, solver: Any, noise: Tensor, labels: Tensor) -> Tensor:
        """Return the teacher's samples, drawn once and stored."""
        if path.exists():
            return load_file(path)["samples"].to(noise.device)
        with make_reporter().task("Held-out samples", len(noise)) as advance:
            samples = self._draw(solver, noise, labels, advance)
        write_file(path, save({"samples": samples.cpu()}))
        return samples

    def __call__(self, solver: Any) -> dict[str, float]:
        """Return all measures of a solver, or of the teacher's samples for None."""
        samples = self._target
        if solver is not None:
            samples = self._draw(solver, self._noise, self._labels)
        found = {"L1": l1_distance(samples, self._target)}
        for extractor, reference in zip(self._extractors, self._references, strict=True):
            measured = measure(_features(extractor, samples), reference, extractor=extractor)
            for name in ("frechet", "kid", "precision", "recall", "coverage"):
                found[f"{extractor.name} {name}"] = float(getattr(measured, name))
        return found

    def _draw(self, solver: Any, noise: Tensor, labels: Tensor, advance: Any = None) -> Tensor:
        return draw_samples(solver, self._denoiser, noise, labels, batch_size=50, progress=advance).samples


def _features(extractor: FeatureExtractor, samples: Tensor) -> Any:
    return torch.cat([extractor(part.clamp(-1, 1)) for part in samples.split(200)]).cpu().numpy()


def main() -> None:
    """Train and evaluate every variant, and print the table."""
    parser = make_parser(__doc__, "claims")
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="variants to compare"
    )
    parser.add_argument("--steps", type=int, default=4, help="NFE of the solvers")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds of the runs")
    parser.add_argument("--held-out", type=int, default=2000, help="number of held-out seeds")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    denoiser = load_teacher("demo", options.device)
    judge = Judge(denoiser, options.held_out, options.out)
    file = options.out / "results.json"
    results: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.exists() else {}
    for seed in options.seeds:
        for variant in options.variants:
            key = f"{variant} | {options.steps} | {seed}"
            if key not in results:
                solver = _train(variant, seed, options.steps, denoiser, options.out)
                results[key] = judge(solver)
                write_file(file, json.dumps(results, indent=1).encode())
                print(key, {name: round(value, 5) for name, value in results[key].items()}, flush=True)
    _print_table(results, options.variants, options.steps, options.seeds, judge(None))


def _train(variant: str, seed: int, steps: int, denoiser: Denoiser, folder: Path) -> GeneralizedSolver:
    loss, changes = VARIANTS[variant]
    shared = [f"training.train_samples={SAMPLES}", f"training.validation_samples={VALIDATION}"]
    shared += [f"training.seed={seed}", "training.shown_images=0"]
    config = load_config("demo", [*shared, *changes])
    samples = make_samples(denoiser, seed, folder / f"samples-{seed}", SAMPLES + VALIDATION)
    name = variant.replace(", ", "-").replace(" ", "-")
    # The solver after the last iteration, as published; validation is not part of the comparison.
    run = folder / f"{name}-{steps}-{seed}"
    finished(train(config, denoiser, run, steps=steps, loss=loss, samples=samples))
    return GeneralizedSolver.load(run / "last.safetensors")


def _print_table(
    results: dict[str, dict[str, float]],
    variants: list[str],
    steps: int,
    seeds: list[int],
    teacher: dict[str, float],
) -> None:
    names = list(teacher)
    print(f"\n| {steps} evaluations | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 1) + "|")
    print("| teacher's own | " + " | ".join(f"{teacher[name]:.4g}" for name in names) + " |")
    for variant in variants:
        rows = [results[f"{variant} | {steps} | {seed}"] for seed in seeds]
        cells = []
        for name in names:
            values = [row[name] for row in rows]
            spread = f" ({statistics.stdev(values):.2g})" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.4g}{spread}")
        print(f"| {variant} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
