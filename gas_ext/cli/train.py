"""`gas-ext train`."""

from __future__ import annotations

import signal
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gas_ext.cli.errors import echo, friendly, resumable
from gas_ext.cli.options import (
    ConfigName,
    Device,
    Override,
    Prompts,
    Teacher,
    examples,
    load_teacher_of,
    local_device,
    read_prompts,
    reporter_on,
)

if TYPE_CHECKING:
    from gas_ext.training import TrainingResult
    from gas_ext.training.plan import RunPlan

EPILOG = examples(
    "gas-ext train --config demo --steps 4 -o runs/demo",
    "gas-ext train --config ffhq --loss gas --steps 6 --device cuda --dry-run",
    "gas-ext train --config demo --solver ld3 -o runs/ld3",
    "gas-ext train --config cifar10 --set training.batch_size=8 --set student.t_eps=0.01 -o runs/cifar10",
    "torchrun --nproc-per-node 8 -m gas_ext train --config imagenet --loss gas --device cuda -o runs/gas",
)


class LossOption(str, Enum):
    """Loss that a solver is learned with."""

    gs = "gs"
    gas = "gas"


class PresetOption(str, Enum):
    """Parts of a solver that are learned; see `gas_ext.solvers.presets`."""

    gs = "gs"
    ld3 = "ld3"
    learned_times = "learned-times"
    s4s = "s4s"
    s4s_alt = "s4s-alt"


@friendly
def train(
    config: ConfigName,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Output directory. If it holds a run, training resumes.",
            show_default="runs/NAME-STEPS-LOSS[-SOLVER]",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of network evaluations (NFE) of the solver.",
            show_default="first entry of student.steps, or as in a run's config.yaml",
        ),
    ] = None,
    loss: Annotated[
        LossOption | None,
        typer.Option(
            help="gs: distillation; gas: distillation and an adversarial term.",
            show_default="gs, or as in a run's config.yaml",
        ),
    ] = None,
    solver: Annotated[
        PresetOption | None,
        typer.Option(
            help="What is learned: everything (gs), or what one of the baselines learns. Short for --set "
            "student.preset=PRESET."
        ),
    ] = None,
    override: Override = None,
    teacher: Teacher = None,
    samples: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the teacher's samples; missing samples are generated.",
            show_default="samples/NAME of the config",
        ),
    ] = None,
    prompts: Prompts = None,
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Training iterations. Short for --set training.iterations=N.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the run. Short for --set training.seed=N.")
    ] = None,
    recompute: Annotated[
        bool | None,
        typer.Option(
            "--recompute/--no-recompute",
            help="Recompute activations in the backward pass: less memory, more time. Short for --set "
            "training.recompute=true.",
        ),
    ] = None,
    autocast: Annotated[
        str | None,
        typer.Option(
            help="Run the network in float16 or bfloat16. Short for --set training.autocast=DTYPE.",
            show_default="training.autocast",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume/--no-resume", help="Resume the run in the output directory, or restart it."),
    ] = True,
    wandb: Annotated[
        str | None, typer.Option(metavar="PROJECT", help="Also log to this Weights & Biases project.")
    ] = None,
    device: Device = "auto",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the needed files, network evaluations and memory, and exit."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print one JSON object.")] = False,
) -> None:
    """Learn a solver from a teacher's samples, with the recipe of a config.

    Writes solver.safetensors (the best on held-out seeds), last.safetensors,
    config.yaml, log.jsonl, checkpoints and pictures. Missing teacher samples
    are generated first.
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
            f"{plan.run.samples} is a file, but --samples takes a folder; convert a published data set with "
            f"gas-ext import {plan.run.samples} --config {config} -o samples/{plan.config.name}."
        )
    folder = out or Path("runs") / _folder_name(plan)
    if folder.suffix == ".safetensors":
        raise ValueError(f"{folder} is the name of a file; give a folder for the run with -o.")
    _learn(plan, folder, read_prompts(prompts), device, resume, wandb)


def _folder_name(plan: RunPlan) -> str:
    run, preset = plan.run, plan.config.student.preset
    return f"{plan.config.name}-{run.steps}-{run.loss}" + ("" if preset == "gs" else f"-{preset}")


def _learn(
    plan: RunPlan, folder: Path, prompts: list[str] | None, device: str, resume: bool, wandb: str | None
) -> None:
    """Load the teacher, train, and print the result."""
    from gas_ext._utils.processes import join_processes
    from gas_ext.training.folder import RunFolder
    from gas_ext.training.run import make_run

    run_folder = RunFolder(folder)  # checked before a large teacher is loaded
    device = local_device(device)
    processes = join_processes(device)
    with resumable():
        result = make_run(
            plan,
            load_teacher_of(plan.config, plan.run.teacher, device),
            run_folder,
            processes,
            prompts=prompts,
            resume=resume,
            wandb=wandb,
            reporter=reporter_on(device),
        )
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
