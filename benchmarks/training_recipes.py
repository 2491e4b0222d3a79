"""The published recipe for training a solver, and the package's default one, on the embedded teacher.

    python benchmarks/training_recipes.py --recipes published default --steps 4 6 8 --seeds 0 1 2 -o recipes

Each seed has separate teacher samples. Prints one Markdown table: mean L1 to the teacher's samples on
held-out seeds, and the cost of training. Run the same command again to resume.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gas_ext._utils.progress import make_reporter
from gas_ext.configs import Config, load_config
from gas_ext.denoisers import Denoiser
from gas_ext.samples import TeacherSamples
from gas_ext.teachers.folder import load_teacher
from gas_ext.training import TrainingResult, read_log, teacher_samples, train

# Overrides of the demo's config: every recipe gets the same data (as many samples as the paper trains GS on),
# so that the same samples are held out.
SHARED = ["training.train_samples=1400", "training.shown_images=0"]
RECIPES = {
    # arXiv 2510.17699, section 5.
    "published": ["training.rate=1e-3", "training.batch_size=24", "training.iterations=10000"],
    # The same with a third of the batch size, affordable on a CPU.
    "published-8": [
        "training.rate=1e-3",
        "training.batch_size=8",
        "training.iterations=10000",
        "training.validate_every=500",
    ],
    "default": [],
    "default-longer": ["training.iterations=1000"],
    "default-unfitted": ["training.start=classical"],
    "default-slower": [
        "training.time_rate=1e-2",
        "training.offset_rate=1e-2",
        "training.coefficient_rate=1e-2",
    ],
}


def make_samples(
    denoiser: Denoiser, seed: int, folder: Path, count: int, config: Config | None = None
) -> TeacherSamples:
    """Open the teacher samples of a seed, generating missing ones; the demo's teacher by default."""
    config = config or load_config("demo")
    seeds = range(10_000 * seed, 10_000 * seed + count)
    steps = config.student.steps[0]
    return teacher_samples.make_samples(
        config, denoiser, seeds, folder, student_steps=steps, reporter=make_reporter()
    )


def finished(result: TrainingResult) -> TrainingResult:
    """Return the result of a run; exit if a signal stopped it."""
    if result.signal is not None:
        raise SystemExit(128 + result.signal)
    return result


def make_parser(description: str, out: str) -> argparse.ArgumentParser:
    """Return a parser with the options of all these scripts; its help shows defaults."""
    parser = argparse.ArgumentParser(
        description=description.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("-o", "--out", type=Path, default=Path(out), help="output directory; runs resume")
    return parser


def main() -> None:
    """Train with every recipe and print the table."""
    parser = make_parser(__doc__, "recipes")
    parser.add_argument(
        "--recipes", nargs="+", choices=RECIPES, default=["published", "default"], help="recipes to compare"
    )
    parser.add_argument("--steps", nargs="+", type=int, default=[4, 6, 8], help="NFE of the solvers")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds of the runs")
    parser.add_argument("--iterations", type=int, help="override the iterations of all recipes")
    options = parser.parse_args()
    denoiser = load_teacher("demo", options.device)
    print("| NFE | seed | recipe | start | iterations | samples seen | L1 before | L1 best | L1 last |")
    print("|---|---|---|---|---|---|---|---|---|")
    for seed in options.seeds:
        for steps in options.steps:
            for recipe in options.recipes:
                changes = [*SHARED, *RECIPES[recipe], f"training.seed={seed}"]
                if options.iterations:
                    changes.append(f"training.iterations={options.iterations}")
                config = load_config("demo", changes)
                count = config.training.train_samples_for("gs") + config.training.validation_samples
                samples = make_samples(denoiser, seed, options.out / f"samples-{seed}", count)
                folder = options.out / f"{recipe}-{steps}-{seed}"
                result = finished(train(config, denoiser, folder, steps=steps, samples=samples))
                last = [line["l1"] for line in read_log(folder) if line["kind"] == "validation"][-1]
                iterations = config.training.iterations_for("gs")
                print(
                    f"| {steps} | {seed} | {recipe} | {result.started_from} | {iterations} "
                    f"| {iterations * config.training.batch_size} | {result.first.l1:.4f} "
                    f"| {result.best.l1:.4f} | {last:.4f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
