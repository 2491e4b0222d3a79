"""The value of a warm start in iterations: solvers of the embedded teacher from other steps and classes.

    python benchmarks/warm_starts.py --steps 6 --seed 0 -o warm-starts

The teacher generates half of its classes, 5 to 9; "other classes" is a solver learned on classes 0 to 4, that
is, on other data. Prints a Markdown table: mean L1 to the teacher's samples on held-out seeds, by iteration.
Run the same command again to resume.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from training_recipes import finished, make_parser, make_samples

from gas_ext._utils.progress import make_reporter
from gas_ext.configs import load_config
from gas_ext.denoisers import Denoiser
from gas_ext.teachers.folder import load_teacher
from gas_ext.training import read_log, train

CHANGES = ["training.train_samples=500", "training.validation_samples=256", "training.shown_images=0"]
SHOWN = (0, 20, 40, 60, 80, 100)


class HalfTheClasses(Denoiser):
    """A denoiser restricted to five of its ten labels."""

    def __init__(self, denoiser: Any, first: int) -> None:
        super().__init__(
            schedule=denoiser.schedule,
            prediction_type=denoiser.prediction_type,
            sample_shape=denoiser.sample_shape,
            name=f"{denoiser.name}, classes {first} to {first + 4}",
            condition_kind="label",
            num_classes=denoiser.num_classes,
        )
        self.denoiser = denoiser
        self.first = first
        self.weights_hash = f"{denoiser.weights_hash}, {first}"

    def predict(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Predict for the label's counterpart among the five."""
        assert condition is not None
        output: Tensor = self.denoiser.predict(x, t, condition % 5 + self.first)
        return output


def learn(
    denoiser: HalfTheClasses, steps: int, start: str, seed: int, folder: Path, name: str, iterations: int
) -> Path:
    """Train a solver with the default recipe from a start; return its folder."""
    changes = [f"training.start={start}", f"training.seed={seed}", "training.validate_every=20"]
    changes.append(f"training.iterations={iterations}")
    config = load_config("demo", [*CHANGES, *changes])
    samples = make_samples(denoiser, seed, folder / f"samples-{denoiser.first}-{seed}", 756, config)
    run = folder / f"{name}-{steps}-{seed}"
    finished(train(config, denoiser, run, steps=steps, samples=samples, reporter=make_reporter()))
    return run


def main() -> None:
    """Learn the solvers to start from, then train from each start, and print the table."""
    parser = make_parser(__doc__, "warm-starts")
    parser.add_argument("--steps", type=int, default=6, help="NFE of the solvers")
    parser.add_argument("--from-steps", nargs="+", type=int, default=[4], help="NFE of solvers to start from")
    parser.add_argument("--seed", type=int, default=0, help="seed of the runs")
    options = parser.parse_args()
    steps, seed, out = options.steps, options.seed, options.out
    teacher = load_teacher("demo", options.device)
    denoiser, other = HalfTheClasses(teacher, 5), HalfTheClasses(teacher, 0)
    starts = {"published": "published", "best DPM-Solver++": "classical", "fitted (default)": "fitted"}
    for n in options.from_steps:
        run = learn(denoiser, n, "fitted", seed, out, "source", 300)
        starts[f"learned, {n} steps"] = str(run / "last.safetensors")
    run = learn(other, steps, "fitted", seed, out, "other-classes", 300)
    starts["learned, other classes"] = str(run / "last.safetensors")
    print(f"| {steps} steps, start | " + " | ".join(map(str, SHOWN)) + " |")
    print("|---" * (len(SHOWN) + 1) + "|")
    for label, start in starts.items():
        name = label.split(" (")[0].replace(", ", "-").replace(" ", "-")
        run = learn(denoiser, steps, start, seed, out, name, max(SHOWN))
        found = {line["iteration"]: line["l1"] for line in read_log(run) if line["kind"] == "validation"}
        print(f"| {label} | " + " | ".join(f"{found[n]:.4f}" for n in SHOWN) + " |", flush=True)


if __name__ == "__main__":
    main()
