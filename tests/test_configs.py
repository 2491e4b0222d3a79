"""The configs that ship, and what is said about one's own."""

import pytest
import yaml

from gas_ext import NoiseSchedule
from gas_ext.configs import config_names, load_config
from gas_ext.seeds import parse_seeds

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
def test_the_paper_s_teacher_solvers(name):
    solver = load_config(name).teacher_solver
    found = (
        solver.steps_for(4),
        solver.order,
        solver.variant,
        solver.timesteps,
        solver.t_eps,
        solver.guidance_scale,
    )
    assert found == PAPER[name]


@pytest.mark.parametrize("name", config_names())
def test_every_config_builds_its_teacher_solver(name):
    config = load_config(name)
    schedule = NoiseSchedule.vp_linear()
    for steps in config.student.steps:
        solver = config.teacher_solver.build(schedule, steps)
        assert solver.steps == config.teacher_solver.steps_for(steps)
        assert len(solver.coefficients("epsilon").rows) == solver.steps


@pytest.mark.parametrize("name", config_names())
def test_teacher_and_evaluation_seeds_do_not_meet(name):
    seeds = load_config(name).seeds
    assert not set(parse_seeds(seeds.teacher)) & set(parse_seeds(seeds.evaluation))


def edited(tmp_path, change) -> str:
    """Write the CIFAR-10 config with one change; return the path."""
    values = load_config("cifar10").model_dump(mode="json")
    change(values)
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def test_one_s_own_file(tmp_path):
    path = edited(tmp_path, lambda values: values["training"].update(batch_size=7))
    assert load_config(path).training.batch_size == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(speed=1), r"own.yaml: speed is not a known setting; remove it\."),
        (lambda v: v["training"].pop("loss"), r"training\.loss is missing; add it\."),
        (
            lambda v: v["training"].update(batch_size=0),
            r"training\.batch_size is 0: .* greater",
        ),
        (lambda v: v["training"].update(batch_size="8"), r"training\.batch_size is '8': .* integer"),
        (lambda v: v["teacher_solver"].update(kind="euler"), r"teacher_solver\.kind is 'euler': .* 'unipc'"),
        (lambda v: v["student"].update(t_eps=1.5), r"student\.t_eps is 1\.5"),
        (lambda v: v["seeds"].update(teacher="9-0"), r"seeds\.teacher is '9-0': .*backward"),
        (lambda v: v["conditions"].update(kind="label"), r"num_classes belongs to labels"),
    ],
)
def test_a_fault_is_told_in_one_sentence(tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_config(edited(tmp_path, change))
    assert "\n" not in str(caught.value)


def test_unknown_names_list_what_there_is():
    with pytest.raises(ValueError, match="expected one of afhqv2, cifar10"):
        load_config("cifar100")
    with pytest.raises(ValueError, match="There is no config file"):
        load_config("missing.yaml")


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2", "!!python/object/apply:os.system ['true']"])
def test_what_is_no_config(tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"is not YAML|is no config"):
        load_config(path)
