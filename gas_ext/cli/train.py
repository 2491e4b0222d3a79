"""`gas-ext train`."""

from __future__ import annotations

import signal
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gas_ext.cli.errors import INTERRUPTED, echo, friendly
from gas_ext.cli.options import Device, Prompts, load_teacher_of, local_device, read_prompts, reporter_on

if TYPE_CHECKING:
    from gas_ext.training import TrainingResult
    from gas_ext.training.plan import RunPlan

EPILOG = (
    "Examples:  gas-ext train --config demo --steps 4 -o runs/demo  |  "
    "gas-ext train --config ffhq --loss gas --steps 6 --device cuda --dry-run  |  "
    "gas-ext train --config demo --solver ld3 -o runs/ld3  |  "
    "gas-ext train --config cifar10 --set training.batch_size=8 --set student.t_eps=0.01 -o runs/cifar10  |  "
    "torchrun --nproc-per-node 8 -m gas_ext train --config imagenet --loss gas --device cuda -o runs/imagenet"
)


class LossKind(str, Enum):
    """What a solver is learned from."""

    gs = "gs"
    gas = "gas"


class PresetOption(str, Enum):
    """What of a solver is learned; see `gas_ext.solvers.presets`."""

    gs = "gs"
    ld3 = "ld3"
    learned_times = "learned-times"
    s4s = "s4s"
    s4s_alt = "s4s-alt"


@friendly
def train(
    config: Annotated[
        str,
        typer.Option(
            "--config",
            "-c",
            help="A data set (cifar10, ffhq, ..., demo), a YAML file, or a run's config.yaml.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="The run's folder; runs/NAME-STEPS-LOSS[-SOLVER] by default. A stopped run resumes.",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Network evaluations of the solver; the config's first.")
    ] = None,
    loss: Annotated[
        LossKind | None, typer.Option(help="gs: distillation (the default); gas: with the adversarial term.")
    ] = None,
    solver: Annotated[
        PresetOption | None,
        typer.Option(
            help="Short for --set student.preset=...: what is learned, all of it (gs) or one of the baselines."
        ),
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="In place of the config's, e.g. training.ema=0.99; repeatable."
        ),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Folder of an imported teacher, or 'demo'; teachers/NAME if not given.")
    ] = None,
    samples: Annotated[
        Path | None, typer.Option(help="Its samples, made as needed; samples/NAME if not given.")
    ] = None,
    prompts: Prompts = None,
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Short for --set training.iterations=N.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Short for --set training.seed=N.")] = None,
    recompute: Annotated[
        bool | None,
        typer.Option(
            "--recompute/--no-recompute",
            help="Short for --set training.recompute=true: less memory, more time.",
        ),
    ] = None,
    autocast: Annotated[
        str | None, typer.Option(help="Short for --set training.autocast=...: bfloat16 or float16.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on with the run in the folder, or start over.")
    ] = True,
    wandb: Annotated[
        str | None, typer.Option(metavar="PROJECT", help="Also log to this Weights & Biases project.")
    ] = None,
    device: Device = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what is needed and what it costs, and stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print one JSON object.")] = False,
) -> None:
    """Learn a solver from a teacher's samples, by the recipe of a config.

    Samples that are missing are made first. In the folder: solver.safetensors (the best on held-out seeds),
    last.safetensors, config.yaml, log.jsonl, checkpoints and pictures.
    """
    import json

    from gas_ext.configs import load_config
    from gas_ext.training.plan import make_plan

    short = {"iterations": iterations, "seed": seed, "recompute": recompute, "autocast": autocast}
    overrides = [f"training.{name}={value}" for name, value in short.items() if value is not None]
    if solver is not None:
        overrides.append(f"student.preset={solver.value}")
    plan = make_plan(
        load_config(config, [*(override or ()), *overrides]),
        None if loss is None else loss.value,
        steps,
        teacher=teacher,
        samples=samples,
    )
    if dry_run:
        echo(json.dumps(plan.to_dict(), indent=2) if as_json else "\n".join(plan.lines()))
        return
    if plan.run.samples is not None and Path(plan.run.samples).is_file():
        raise ValueError(
            f"{plan.run.samples} is a file, but --samples takes a folder: convert a published data set with "
            f"gas-ext import {plan.run.samples} --config {config} -o samples/{plan.config.name}."
        )
    folder = out or Path("runs") / _folder_name(plan)
    if folder.suffix == ".safetensors":
        raise ValueError(f"{folder} is the name of a file; name a folder for the run with -o")
    _learn(plan, folder, None if prompts is None else read_prompts(prompts), device, resume, wandb)


def _folder_name(plan: RunPlan) -> str:
    run, preset = plan.run, plan.config.student.preset
    return f"{plan.config.name}-{run.steps}-{run.loss}" + ("" if preset == "gs" else f"-{preset}")


def _learn(
    plan: RunPlan, folder: Path, prompts: list[str] | None, device: str, resume: bool, wandb: str | None
) -> None:
    """Load the teacher, learn, and say what came out."""
    from gas_ext._utils.processes import join_processes
    from gas_ext.training.folder import RunFolder
    from gas_ext.training.run import make_run

    run_folder = RunFolder(folder)  # refused before a large teacher is loaded
    place = local_device(device)
    processes = join_processes(place)
    try:
        denoiser = load_teacher_of(plan.config, plan.run.teacher, place)
        result = make_run(
            plan,
            denoiser,
            run_folder,
            processes,
            prompts=prompts,
            resume=resume,
            wandb=wandb,
            reporter=reporter_on(place),
        )
    except KeyboardInterrupt:
        echo("Interrupted. Run the same command again to resume.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    processes.leave()
    if processes.is_first:
        _report(result, plan.training_config.iterations)
    if result.signal is not None:
        raise typer.Exit(128 + result.signal)


def _report(result: TrainingResult, iterations: int) -> None:
    if result.signal is not None:
        name = signal.Signals(result.signal).name
        echo(
            f"Stopped by {name} after {result.iteration} of {iterations} iterations, which are saved. Run "
            "the same command again to resume.",
            err=True,
        )
        return
    best = result.best
    echo(
        f"wrote {result.folder / 'solver.safetensors'}: {result.solver.steps} network evaluations, mean L1 "
        f"to the teacher on held-out seeds {best.l1:.4f} after {best.iteration} of {iterations} iterations "
        f"(before training, {result.started_from}: {result.first.l1:.4f})"
    )
