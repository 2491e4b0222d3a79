"""The configs that ship with the package, custom configs, and messages about their errors."""

from typing import get_args

import pytest
import torch
import yaml

from gas_ext import GASSampler, NoiseSchedule
from gas_ext._utils.seeds import parse_seeds
from gas_ext.configs import TeacherSolver, config_names, config_text, load_config
from gas_ext.solvers.registry import SpacingName, build_solver, canonical_name

# The schedule of Stable Diffusion, which GITS times require.
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
SD = NoiseSchedule.vp_discrete(torch.cumprod(1.0 - BETAS, 0))

# Settings of arXiv 2510.17699: teacher steps at student NFE 4, order, variant, times, t_eps, guidance.
PAPER = {
    "cifar10": (20, 3, "bh1", "logsnr", 1e-4, None),
    "ffhq": (20, 3, "bh1", "logsnr", 1e-4, None),
    "afhqv2": (20, 3, "bh1", "logsnr", 1e-4, None),
    "lsun-bedroom": (20, 3, "bh2", "uniform", 1e-3, None),
    "imagenet": (10, 3, "bh2", "quadratic", 1e-3, 2.0),
    "coco": (5, 2, "bh1", "gits", 1e-3, 7.5),
}


@pytest.mark.parametrize("name", PAPER)
def test_teacher_solvers_of_the_paper(name):
    solver = load_config(name).teacher_solver
    settings = (solver.order, solver.variant, solver.timesteps, solver.t_eps, solver.guidance_scale)
    assert (solver.steps_for(4), *settings) == PAPER[name]


@pytest.mark.parametrize("name", config_names())
def test_every_config_builds_its_teacher_solver_and_separates_its_seeds(name):
    config = load_config(name)
    for steps in config.student.steps:
        solver = config.teacher_solver.build(SD, steps)
        assert solver.steps == config.teacher_solver.steps_for(steps)
        assert len(solver.coefficients("epsilon").rows) == solver.steps
    assert not set(parse_seeds(config.seeds.teacher)) & set(parse_seeds(config.seeds.evaluation))


def edited(tmp_path, change) -> str:
    """Write the CIFAR-10 config with one change; return the path."""
    values = load_config("cifar10").model_dump(mode="json")
    change(values)
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def test_a_custom_file(tmp_path):
    path = edited(tmp_path, lambda values: values["training"].update(batch_size=7))
    assert load_config(path).training.batch_size == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(speed=1), r"own.yaml: speed is not a known setting; remove it\."),
        (lambda v: v["training"].pop("loss"), r"training\.loss is missing; add it\."),
        (lambda v: v["training"].update(batch_size=0), r"training\.batch_size is 0: .* greater"),
        (lambda v: v["training"].update(batch_size="8"), r"training\.batch_size is '8': .* integer"),
        (lambda v: v["teacher_solver"].update(kind="euler"), r"teacher_solver\.kind is 'euler': .* 'unipc'"),
        (lambda v: v["student"].update(t_eps=1.5), r"student\.t_eps is 1\.5"),
        (lambda v: v["seeds"].update(teacher="9-0"), r"seeds\.teacher is '9-0': .*backward"),
        (lambda v: v["conditions"].update(kind="label"), r"num_classes is required for labels"),
    ],
)
def test_an_error_is_one_sentence(tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_config(edited(tmp_path, change))
    assert "\n" not in str(caught.value)


def test_gits_times_with_any_multistep_solver():
    config = load_config("coco", ["teacher_solver.kind=dpm-solver++"])
    with pytest.raises(ValueError, match=r"GITS times were found for Stable Diffusion 1\.5"):
        config.teacher_solver.build(NoiseSchedule.flow(), 4)


@pytest.mark.parametrize("kind", ["unipc", "ipndm", "dpm-solver++"])
@pytest.mark.parametrize("timesteps", get_args(SpacingName))
def test_the_teacher_solver_is_the_one_of_its_name(kind, timesteps):
    values = {"kind": kind, "steps": 6, "order": 2, "variant": "bh2", "timesteps": timesteps, "t_eps": 0.01}
    config = TeacherSolver(**values)
    name = {"unipc": "unipc-2-bh2", "ipndm": "ipndm-2", "dpm-solver++": "dpm++-2"}[kind]
    assert config.name == f"{name}@{timesteps}"
    assert canonical_name(config.name) == config.name
    solver, named = config.build(SD, 4), build_solver(config.name, SD, 6, 0.01)
    x = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found, expected = (
        GASSampler(each, lambda x, t, c: torch.tanh(x), "sample")(x) for each in (solver, named)
    )
    assert (found - expected).abs().max() <= 1e-10


def test_orders_of_a_teacher_solver():
    assert load_config("cifar10", ["teacher_solver.order=4"]).teacher_solver.name == "unipc-4-bh1@logsnr"
    with pytest.raises(ValueError, match=r"teacher_solver is .*: dpm-solver\+\+ has no order 4, use"):
        load_config("demo", ["teacher_solver.order=4"])


def test_the_preset_of_the_student():
    assert load_config("demo").student.preset == "gs"
    assert load_config("demo", ["student.preset=s4s-alt"]).student.preset == "s4s-alt"
    with pytest.raises(ValueError, match=r"student\.preset is 'dpm': .*'ld3'"):
        load_config("demo", ["student.preset=dpm"])


@pytest.mark.parametrize("name", ["kind", "preset"])
@pytest.mark.parametrize("overrides", [(), ("student.kind=ld3",), ("student.preset=ld3",)])
def test_the_preset_was_called_kind(tmp_path, name, overrides):
    text = config_text(load_config("demo", ["student.preset=s4s"]))
    assert "preset: s4s" in text
    path = tmp_path / "earlier.yaml"
    path.write_text(text.replace("preset: s4s", f"{name}: s4s"))
    assert load_config(path, overrides).student.preset == ("ld3" if overrides else "s4s")


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="expected one of afhqv2, cifar10"):
        load_config("cifar100")
    with pytest.raises(ValueError, match="There is no config file"):
        load_config("missing.yaml")


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2", "!!python/object/apply:os.system ['true']"])
def test_files_that_are_not_configs_are_refused(tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"is not YAML|is not a config"):
        load_config(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("!!bool x", "has a value that does not match its type"),
        ("!!int ''", "has a value that does not match its type"),
        ("!!timestamp x", "has a value that does not match its type"),
        ("&a [1, *a]", "it has aliases"),
        ("[" * 5000, "has a value that does not match its type"),
        ("[" + "x" * 10_000 + "]", "title is "),
    ],
)
def test_hostile_yaml_is_refused_in_one_short_sentence(tmp_path, value, message):
    path = tmp_path / "own.yaml"
    path.write_text(config_text(load_config("demo")).replace("title: ", f"title: {value} #"))
    with pytest.raises(ValueError, match=message) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 600


def test_nested_aliases_are_not_expanded(tmp_path):
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="it has aliases") as caught:
        load_config(tmp_path / "bomb.yaml")
    assert len(str(caught.value)) < 300


def test_several_errors_are_one_sentence(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(config_text(load_config("demo")).replace("steps: 20", "steps: none"))
    with pytest.raises(ValueError, match=r"config\.yaml: teacher_solver\.steps") as error:
        load_config(str(path))
    assert ". " not in str(error.value)


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("0.5", 0.5), ("2", 2.0), ("null", None)])
def test_usual_notations_of_numbers(text, value):
    assert load_config("demo", [f"training.clip={text}"]).training.clip == value
