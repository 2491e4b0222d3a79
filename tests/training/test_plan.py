import json

import pytest

from gas_ext.cli.options import load_teacher_of
from gas_ext.configs import config_names, load_config
from gas_ext.samples import generate_samples
from gas_ext.teachers.demo import load_demo_teacher
from gas_ext.training.baselines import classical_solver
from gas_ext.training.plan import NeededFile, make_plan, samples_folder


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GAS_EXT_WEIGHTS", raising=False)


def files(plan):
    return {file.what: file for file in plan.files}


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["gs", "gas"])
@pytest.mark.parametrize("name", config_names())
def test_every_config_has_a_plan(name, loss):
    plan = make_plan(load_config(name), loss)
    text = "\n".join(plan.lines())
    assert plan.config.title in text
    assert f"NFE {plan.run.steps}" in text
    assert json.loads(json.dumps(plan.to_dict()))["student_nfe"] == plan.run.steps
    assert all(bool(file.remedy) != file.present for file in plan.files)


def test_absent_files_and_their_remedies():
    plan = make_plan(load_config("afhqv2"), "gas", 6)
    assert not plan.ready
    found = files(plan)
    assert found["weights"].path == "weights/afhqv2/edm-afhqv2-64x64-uncond-vp.pkl"
    assert "https://nvlabs-fi-cdn.nvidia.com/edm" in found["weights"].remedy
    assert found["teacher"].remedy == "import it: gas-ext import afhqv2 -o teachers/afhqv2"
    assert found["teacher samples"].remedy == (
        "generate them: gas-ext teach --config afhqv2 --seeds 0-5999 -o samples/afhqv2"
    )
    assert found["discriminator"].path == "weights/r3gan-ffhq64.pkl"
    assert "perceptual loss" in found


def test_a_teacher_that_is_present(tmp_path):
    for name in ("weights/cifar10.txt", "teachers/ffhq/teacher.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    found = files(make_plan(load_config("ffhq")))
    assert found["teacher"].present
    assert "weights" not in found  # they are in the folder
    assert files(make_plan(load_config("cifar10"), teacher="teachers/ffhq"))["teacher"].present


def test_samples_are_present_only_when_they_are_complete_and_enough(tmp_path):
    config = load_config("demo", ["training.train_samples=2", "training.validation_samples=1"])
    teacher = load_demo_teacher()
    generate_samples(
        teacher,
        classical_solver(teacher.schedule, 2, 2, "uniform").solver,
        range(3),
        tmp_path / "mine",
        shard_size=2,
    )

    def planned(**options):
        return files(make_plan(config.model_copy(**options), samples="mine"))["teacher samples"]

    assert planned() == NeededFile("teacher samples", "mine", True)
    more = config.training.model_copy(update={"validation_samples": 2})
    assert planned(update={"training": more}).remedy == "it holds 3 of 4 samples; training generates the rest"
    (tmp_path / "mine/shard-00001.safetensors").unlink()
    assert not planned().present
    assert "shard-00001.safetensors is missing" in planned().remedy
    (tmp_path / "mine/manifest.json").write_text("{}")
    assert "manifest.json is not a manifest" in planned().remedy


def test_a_config_with_fewer_seeds_than_samples():
    with pytest.raises(ValueError, match=r"cifar10 needs 2400 samples .* has 100 seeds"):
        _ = make_plan(load_config("cifar10", ["seeds.teacher=0-99"])).files


def test_a_teacher_without_times_for_so_many_steps():
    with pytest.raises(ValueError, match=r"takes 21 steps for a student of 20, .* only for 5, 6, 7, 8 steps"):
        make_plan(load_config("coco"), steps=20).to_dict()


def test_commands_for_a_custom_config():
    config = load_config("cifar10", ["name=mine", "teacher.megabytes=null", "teacher.address=null"])
    found = files(make_plan(config))
    assert found["teacher"].remedy == "import it: gas-ext import mine --config CONFIG.yaml -o teachers/mine"
    assert found["teacher samples"].remedy.startswith(
        "generate them: gas-ext teach --config CONFIG.yaml --seeds"
    )
    assert found["weights"].remedy == "download edm-cifar10-32x32-uncond-vp.pkl"


def test_numbers_of_the_paper():
    """CIFAR-10: 1400 and 5000 teacher samples of 20 evaluations, 10,000 iterations of batch 24."""
    config = load_config("cifar10")
    gs, gas = make_plan(config, "gs", 4), make_plan(config, "gas", 4)
    assert gs.evaluations == {
        "for the teacher's samples": 2400 * 20,
        "in training": 10_000 * 24 * 4,
        "without gradient, for the discriminator": 0,
    }
    assert gas.samples["training"] == 5000
    assert gas.evaluations["without gradient, for the discriminator"] == 10_000 * 24 * 4


@pytest.mark.slow
def test_the_discriminator_s_view_costs_evaluations():
    """Per level: of the student's sample with gradient; of a fake and twice of the teacher's without."""
    config = load_config("cifar10", ["adversarial.noise_levels=[0.05, 0.3]"])
    alone, gas = make_plan(load_config("cifar10"), "gas", 4), make_plan(config, "gas", 4)
    drawn = 10_000 * 24
    assert gas.evaluations["in training"] == drawn * (4 + 2)
    assert gas.evaluations["without gradient, for the discriminator"] == drawn * (4 + 3 * 2)
    assert gas.memory["activations"] == alone.memory["activations"] // 4 * 6
    assert make_plan(config, "gs", 4).to_dict() == make_plan(load_config("cifar10"), "gs", 4).to_dict()
    assert f"{drawn * 6:,} in training, {drawn * 10:,} without gradient" in "\n".join(gas.lines())


@pytest.mark.slow
def test_recomputation_stores_one_evaluation_at_a_time():
    options = ["training.recompute=true", "adversarial.noise_levels=[0.05, 0.3]"]
    stored, recomputed = (make_plan(load_config("cifar10", options[n:]), "gas", 4).memory for n in (1, 0))
    assert recomputed["activations"] == stored["activations"] // 6
    assert recomputed["total"] == stored["total"] - stored["activations"] // 6 * 5


@pytest.mark.slow
def test_the_teacher_s_solver_in_words():
    assert "teacher: UniPC-3 (bh1), logSNR times to 0.0001, NFE 20" in make_plan(load_config("ffhq")).lines()
    text = "teacher: iPNDM-2, GITS times to 0.001, guidance 7.5, NFE 5"
    assert text in make_plan(load_config("coco"), steps=4).lines()
    text = "teacher: DPM-Solver++(3M), logSNR times to 0.001, NFE 20"
    assert text in make_plan(load_config("demo")).lines()


def test_the_student_s_preset():
    assert "student: NFE 4" in make_plan(load_config("demo")).lines()
    plan = make_plan(load_config("demo", ["student.preset=ld3"]), "gas")
    assert "student: LD3, NFE 4" in plan.lines()
    assert plan.to_dict()["student_preset"] == "ld3"


def test_a_teacher_that_depends_on_the_student():
    config = load_config("coco")
    assert make_plan(config, "gs", 6).teacher_nfe == 7
    assert str(samples_folder(config, 6)) == "samples/coco-6"
    remedy = files(make_plan(config, "gs", 6))["teacher samples"].remedy
    assert "--student-steps 6 --prompts PROMPTS.txt -o samples/coco-6" in remedy


def test_the_embedded_teacher_is_present():
    assert files(make_plan(load_config("demo")))["teacher"].present


def test_a_custom_teacher_is_looked_for_in_its_folder(tmp_path):
    """A config of the diffusers guide, which names no published weights."""
    config = load_config("demo", ["name=mine", "teacher={kind: custom}"])
    teacher = files(make_plan(config))["teacher"]
    assert (teacher.present, teacher.path) == (False, "teachers/mine")
    command = "gas-ext import SOURCE --config CONFIG.yaml -o teachers/mine"
    assert teacher.remedy == f"import it: {command}; or pass a Denoiser to train in Python"
    with pytest.raises(ValueError, match=f"^There is no imported teacher .*; run {command}\\.$"):
        load_teacher_of(config, None, "cpu")
    (tmp_path / "teachers/mine").mkdir(parents=True)
    (tmp_path / "teachers/mine/teacher.json").write_text("{}")
    assert files(make_plan(config))["teacher"].present


def test_unknown_memory():
    config = load_config("cifar10")
    teacher = config.teacher.model_copy(update={"architecture": None})
    plan = make_plan(config.model_copy(update={"teacher": teacher}))
    assert "memory: unknown (The config cifar10" in "\n".join(plan.lines())


def test_arguments_override_the_config():
    plan = make_plan(load_config("demo"), "gas", 6, samples="here")
    assert (plan.run.steps, plan.run.loss, plan.run.samples) == (6, "gas", "here")
    assert make_plan(plan.config) == plan
    assert make_plan(plan.config, steps=8).run.loss == "gas"
