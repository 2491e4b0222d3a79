"""What `gas-ext evaluate` and `gas-ext compare` share: their options, and the way to a report."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

from gas_ext.cli.errors import resumable
from gas_ext.cli.options import (
    Autocast,
    ConfigName,
    Device,
    Labels,
    Override,
    Prompts,
    Teacher,
    load_teacher_of,
    local_device,
    read_autocast,
    read_labels,
    read_prompts,
    reporter_on,
)

if TYPE_CHECKING:
    from gas_ext.configs import Config
    from gas_ext.denoisers import Denoiser
    from gas_ext.evaluation import Comparison
    from gas_ext.evaluation.features import FeatureExtractor
    from gas_ext.evaluation.metrics import Reference

_DEFAULT_SAMPLES = 5000


@dataclass(frozen=True)
class Request:
    """The values of the command line: each field is an option of both commands.

    Each command's subclass declares `solver` and `out` again, with their help.
    """

    config: ConfigName
    solver: Any
    out: Path
    nfe: Annotated[
        str | None,
        typer.Option(
            help="Numbers of network evaluations, such as 4,6 or 4-8.", show_default="student.steps"
        ),
    ] = None
    samples: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Number of held-out seeds, the first of seeds.evaluation.",
            show_default=str(_DEFAULT_SAMPLES),
        ),
    ] = None
    seeds: Annotated[
        str | None, typer.Option(help="Held-out seeds such as 50000-50999, instead of those of the config.")
    ] = None
    teacher: Teacher = None
    labels: Labels = None
    prompts: Prompts = None
    features: Annotated[
        list[str] | None,
        typer.Option(
            help="Feature network for distances between distributions: demo, efficientnet-lite0, "
            "inception-clean, inception-legacy, inception-edm or none (repeatable).",
            show_default="demo for the embedded teacher, otherwise none",
        ),
    ] = None
    feature_weights: Annotated[
        Path | None, typer.Option(help="File with the weights of the Inception network.")
    ] = None
    reference: Annotated[
        Path | None,
        typer.Option(
            help="Statistics of real data, .npz or .safetensors. Those of the embedded teacher ship with "
            "the package."
        ),
    ] = None
    perceptual: Annotated[
        bool, typer.Option("--perceptual", help="Also measure a perceptual distance, in --features.")
    ] = False
    batch_size: Annotated[
        int, typer.Option(min=1, help="Samples per network call; wall times depend on it.")
    ] = 50
    autocast: Autocast = None
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads per process.", show_default="chosen by torch")
    ] = None
    allow_training_seeds: Annotated[
        bool,
        typer.Option("--allow-training-seeds", help="Accept seeds that solvers may have been learned from."),
    ] = False
    override: Override = None
    device: Device = "auto"


R = TypeVar("R", bound=Request)


def options_of(request: type[R]) -> Callable[[Callable[[R], None]], Callable[..., None]]:
    """Make a command of a function of a request: typer reads its fields as options of the command."""

    def decorate(function: Callable[[R], None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(**options: Any) -> None:
            function(request(**options))

        hints = get_type_hints(request, include_extras=True)
        command.__annotations__ = hints
        fields = inspect.signature(request).parameters.values()
        command.__signature__ = inspect.Signature([f.replace(annotation=hints[f.name]) for f in fields])  # type: ignore[attr-defined]
        return command

    return decorate


def judge(request: Request) -> tuple[Comparison, bool]:
    """Compare the solvers and write the report; also return whether this process prints the result."""
    import torch

    from gas_ext._utils.processes import join_processes
    from gas_ext._utils.seeds import parse_seeds
    from gas_ext.configs import load_config
    from gas_ext.evaluation import compare
    from gas_ext.evaluation.report import write_report

    config = load_config(request.config, request.override or ())
    seeds, nfe = _seeds(request, config), _evaluations(request, config)
    autocast, labels = read_autocast(request.autocast), read_labels(request.labels)
    prompts = read_prompts(request.prompts)
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    device = local_device(request.device)
    denoiser = load_teacher_of(config, request.teacher, device)
    features = _features(request, denoiser)
    reference = _reference(request, denoiser, features)
    processes = join_processes(device)
    with resumable("the last finished chunk"):
        comparison = compare(
            denoiser,
            [request.solver] if isinstance(request.solver, str) else request.solver,
            nfe,
            request.out,
            teacher=lambda steps: config.teacher_solver.build(denoiser.schedule, steps),
            seeds=seeds,
            labels=labels,
            prompts=prompts,
            features=features,
            reference=reference,
            perceptual=request.perceptual,
            t_eps=config.student.t_eps,
            guidance_scale=config.teacher_solver.guidance_scale,
            autocast=autocast,
            batch_size=request.batch_size,
            training_seeds=None if request.allow_training_seeds else parse_seeds(config.seeds.teacher),
            title=config.title,
            reporter=reporter_on(device),
            processes=processes,
        )
        if processes.is_first:
            write_report(comparison, request.out)
    processes.leave()
    return comparison, processes.is_first


def _seeds(request: Request, config: Config) -> Sequence[int]:
    from gas_ext._utils.seeds import parse_seeds

    if request.seeds is not None:
        if request.samples is not None:
            raise ValueError("Give either --samples or --seeds, not both.")
        return parse_seeds(request.seeds)
    seeds = parse_seeds(config.seeds.evaluation)
    if request.samples is not None and request.samples > len(seeds):
        raise ValueError(
            f"The config {config.name} has {len(seeds)} evaluation seeds, fewer than {request.samples}; give "
            "others with --seeds."
        )
    return seeds[: request.samples or _DEFAULT_SAMPLES]


def _evaluations(request: Request, config: Config) -> list[int]:
    from gas_ext._utils.seeds import parse_seeds

    if request.nfe is None:
        return list(config.student.steps)
    try:
        numbers = sorted(set(parse_seeds(request.nfe)))
    except ValueError:
        numbers = [0]
    if numbers[0] < 1:
        raise ValueError(f"Cannot read numbers of evaluations from {request.nfe!r}; write 4,6 or 4-8.")
    return numbers


def _features(request: Request, denoiser: Denoiser) -> list[FeatureExtractor]:
    from gas_ext.evaluation.features import load_features
    from gas_ext.teachers.demo import DemoTeacher

    names = request.features or (["demo"] if isinstance(denoiser, DemoTeacher) else ["none"])
    if names == ["none"]:
        if request.reference is not None:
            raise ValueError("A reference needs the features it was computed in; name them with --features.")
        return []
    # A single network without a weights file reports that itself.
    takes_weights = [name for name in names if name.startswith("inception-") or len(names) == 1]
    return [
        load_features(name, denoiser.device, request.feature_weights if name in takes_weights else None)
        for name in names
    ]


def _reference(request: Request, denoiser: Denoiser, features: list[FeatureExtractor]) -> Reference | None:
    """Return the requested statistics of real data, or the embedded ones if they match."""
    from gas_ext.evaluation.metrics import Reference
    from gas_ext.teachers.demo import DemoTeacher

    if request.reference is not None:
        return Reference.load(request.reference)
    demo = [extractor for extractor in features if extractor.name == "demo"]
    return embedded_reference("data", demo[0]) if demo and isinstance(denoiser, DemoTeacher) else None


def embedded_reference(name: str, extractor: FeatureExtractor) -> Reference:
    """Return the statistics that ship with the embedded teacher: of its "data", or of "teacher" samples."""
    from gas_ext.evaluation.metrics import Reference, Statistics
    from gas_ext.teachers.demo import load_demo_statistics

    titles = {"data": "Fashion-MNIST training images", "teacher": "10,000 samples of the embedded teacher"}
    statistics = Statistics(*load_demo_statistics()[name])
    return Reference(titles[name], statistics, extractor=extractor.describe())
