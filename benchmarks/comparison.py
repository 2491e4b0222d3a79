"""All solvers on the embedded teacher: the numbers in docs/comparison.md.

    python benchmarks/comparison.py --nfe 4 5 6 8 10 --samples 5000 -o comparison
    python benchmarks/comparison.py --nfe 15 20 --teacher-steps 60 --presets gs \\
        --train-samples 256 --screened 32 --samples 250 -o high

Learns one solver per preset and NFE, evaluates them and the training-free solvers on held-out seeds, and
writes tables, plots and a page. With --page docs/comparison.md, also updates the tables and pictures of that
page. Run the same command again to resume.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from comparison_page import write_page
from training_recipes import finished, make_parser, make_samples

from gas_ext._utils.files import write_file
from gas_ext._utils.progress import make_reporter
from gas_ext._utils.seeds import parse_seeds
from gas_ext.configs import Config, load_config
from gas_ext.denoisers import Denoiser
from gas_ext.evaluation import compare, draw_samples
from gas_ext.evaluation.metrics import l1_distance
from gas_ext.evaluation.report import print_table, write_report
from gas_ext.samples import SampleBatch
from gas_ext.solvers.registry import build_solver
from gas_ext.teachers.folder import load_teacher
from gas_ext.training import train
from gas_ext.training.baselines import FAMILIES, family_names

# Label, preset (gas_ext.solvers.presets) and loss.
LEARNED = {
    "learned-times": ("DPM-Solver++, learned times", "learned-times", "gs"),
    "ld3": ("LD3", "ld3", "gs"),
    "s4s": ("S4S", "s4s", "gs"),
    "s4s-alt": ("S4S-Alt", "s4s-alt", "gs"),
    "gs": ("GS", "gs", "gs"),
    "gas": ("GAS", "gs", "gas"),
}


def screen(
    denoiser: Denoiser, batch: SampleBatch, nfes: list[int], t_eps: float, file: Path
) -> dict[str, dict[int, str]]:
    """Choose variant and times of every family for each NFE: the closest to the teacher on training seeds.

    All distances are stored in the file.
    """
    found: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.exists() else {}
    chosen: dict[str, dict[int, str]] = {}
    names = {family: family_names(family) for family in FAMILIES}
    with make_reporter().task("Screening", len(nfes) * sum(map(len, names.values()))) as advance:
        for family, candidates in names.items():
            for nfe in nfes:
                distances = found.setdefault(f"{family}, {nfe}", {})
                for name in candidates:
                    if name not in distances:
                        solver = build_solver(name, denoiser.schedule, nfe, t_eps)
                        run = draw_samples(solver, denoiser, batch.noise, batch.condition)
                        distances[name] = l1_distance(run.samples, batch.samples)
                        write_file(file, json.dumps(found, indent=1).encode())
                    advance(1)
                chosen.setdefault(family, {})[nfe] = min(candidates, key=distances.__getitem__)
    return chosen


def learn(name: str, steps: int, denoiser: Denoiser, folder: Path, changes: list[str], source: Any) -> None:
    """Train one solver with the default recipe, or resume."""
    _, preset, loss = LEARNED[name]
    config = load_config("demo", [*changes, f"student.preset={preset}", "training.shown_images=0"])
    reporter = make_reporter()
    finished(train(config, denoiser, folder, steps=steps, loss=loss, samples=source, reporter=reporter))


def teacher_samples(denoiser: Denoiser, folder: Path, config: Config) -> Any:
    """Open the teacher samples of all solvers, generating missing ones."""
    counts = config.training
    count = counts.train_samples_for("gas") + counts.validation_samples
    return make_samples(denoiser, 0, folder, count, config)


def main() -> None:
    """Learn, evaluate, report."""
    parser = make_parser(__doc__, "comparison")
    parser.add_argument("--nfe", nargs="+", type=int, default=[4, 5, 6, 8, 10], help="NFEs to compare")
    parser.add_argument("--samples", type=int, default=5000, help="number of held-out seeds")
    parser.add_argument(
        "--presets", nargs="*", choices=LEARNED, default=list(LEARNED), help="learned solvers to compare"
    )
    parser.add_argument("--teacher-steps", type=int, default=20, help="NFE of the teacher")
    parser.add_argument("--train-samples", type=int, default=1000, help="teacher samples to learn from")
    parser.add_argument(
        "--screened",
        type=int,
        default=64,
        help="training samples that select the best of each family",
    )
    parser.add_argument("--learn-only", action="store_true", help="do not evaluate yet")
    parser.add_argument("--page", type=Path, help="page to update, docs/comparison.md")
    parser.add_argument("--part", default="comparison", help="part of the page to update")
    options = parser.parse_args()
    changes = [f"training.train_samples={options.train_samples}", "training.validation_samples=128"]
    changes.append(f"teacher_solver.steps={options.teacher_steps}")
    config = load_config("demo", changes)
    denoiser = load_teacher("demo", options.device)
    source = teacher_samples(denoiser, options.out / "samples", config)
    for name in options.presets:
        for steps in options.nfe:
            learn(name, steps, denoiser, options.out / f"{name}-{steps}", changes, source)
    if options.learn_only:
        return
    batch = source.batch(range(options.screened), images=False).to(denoiser.device)
    families = screen(
        denoiser, batch, options.nfe, config.student.t_eps, options.out / f"screening-{options.screened}.json"
    )
    learned = {
        LEARNED[name][0]: {
            nfe: str(options.out / f"{name}-{nfe}" / "solver.safetensors") for nfe in options.nfe
        }
        for name in options.presets
    }
    comparison = compare(
        denoiser,
        {**families, **learned},
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
    if options.page:
        write_page(comparison, families, options.screened, options.out, options.page, options.part)


if __name__ == "__main__":
    main()
