"""All solvers on the embedded teacher: the numbers of docs/comparison.md.

    python benchmarks/comparison.py --nfe 4 5 6 8 10 --samples 5000 -o comparison
    python benchmarks/comparison.py --nfe 15 20 --teacher-steps 80 --kinds gs -o comparison-high

Learns one solver of every kind and number of evaluations, judges them beside the training-free ones on
held-out seeds, and writes tables, plots and the page. Stopped at any moment it goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from training_recipes import finished, make_samples

from gas_ext.configs import load_config
from gas_ext.denoisers import Denoiser
from gas_ext.evaluation import compare
from gas_ext.progress import make_reporter
from gas_ext.report import print_table, write_report
from gas_ext.seeds import parse_seeds
from gas_ext.teachers.folder import load_teacher
from gas_ext.training import train

# Every family, on the times that suit it on this teacher, and on the usual ones where those are others.
TRAINING_FREE = (
    "ddim@logsnr",
    "ddim@quadratic",
    "dpm++-2@logsnr",
    "dpm++-2@quadratic",
    "dpm++-3@logsnr",
    "unipc-2-bh2@quadratic",
    "unipc-3-bh2@logsnr",
    "deis-2@quadratic",
    "ipndm-2@quadratic",
    "ipndm-3@logsnr",
    "heun@logsnr",
)
# Label, what is learned (gas_ext.kinds), and the loss.
LEARNED = {
    "learned-times": ("DPM-Solver++, learned times", "learned-times", "gs"),
    "ld3": ("LD3", "ld3", "gs"),
    "s4s": ("S4S", "s4s", "gs"),
    "s4s-alt": ("S4S-Alt", "s4s-alt", "gs"),
    "gs": ("GS", "gs", "gs"),
    "gas": ("GAS", "gs", "gas"),
}


def learn(name: str, steps: int, denoiser: Denoiser, folder: Path, changes: list[str], samples: Path) -> None:
    """Train one solver with the package's own recipe, or go on with it."""
    _, kind, loss = LEARNED[name]
    config = load_config("demo", [*changes, f"student.kind={kind}", "training.shown_images=0"])
    counts = config.training
    source = make_samples(
        denoiser, 0, samples, counts.train_samples_for("gas") + counts.validation_samples, config
    )
    finished(
        train(config, denoiser, folder, steps=steps, loss=loss, samples=source, reporter=make_reporter())
    )


def main() -> None:
    """Learn, judge, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nfe", nargs="+", type=int, default=[4, 5, 6, 8, 10])
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--kinds", nargs="*", choices=LEARNED, default=list(LEARNED))
    parser.add_argument("--teacher-steps", type=int, default=20, help="evaluations of the teacher")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("-o", "--out", type=Path, default=Path("comparison"))
    options = parser.parse_args()
    changes = ["training.train_samples=1000", "training.validation_samples=128"]
    changes.append(f"teacher_solver.steps={options.teacher_steps}")
    config = load_config("demo", changes)
    denoiser = load_teacher("demo", options.device)
    for name in options.kinds:
        for steps in options.nfe:
            learn(name, steps, denoiser, options.out / f"{name}-{steps}", changes, options.out / "samples")
    learned = {
        LEARNED[name][0]: str(options.out / f"{name}-{{nfe}}" / "last.safetensors") for name in options.kinds
    }
    comparison = compare(
        denoiser,
        {**{name: name for name in TRAINING_FREE}, **learned},
        options.nfe,
        options.out,
        teacher=config.teacher_solver.build(denoiser.schedule, options.nfe[0]),
        seeds=parse_seeds(config.seeds.evaluation)[: options.samples],
        features=["demo", "efficientnet-lite0"],
        title=config.title,
        reporter=make_reporter(),
    )
    write_report(comparison, options.out)
    print_table(comparison)


if __name__ == "__main__":
    main()
