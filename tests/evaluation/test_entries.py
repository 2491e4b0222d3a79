import pytest
from comparison_tools import SCHEDULE, make_denoiser

from gas_ext import GeneralizedSolver
from gas_ext.evaluation.entries import build_entries, named_solvers, solver_identity
from gas_ext.solvers.registry import build_solver


def test_labels():
    names = [
        "unipc-3",
        "A b=runs/x/solver.safetensors",
        "deis-2@1,0.5,0.001",
        "runs/gas_{nfe}/last.safetensors",
    ]
    assert list(named_solvers(names)) == ["unipc-3", "A b", "deis-2@1,0.5,0.001", "gas"]
    assert list(named_solvers(["teacher", "ddim", "best-4.safetensors"])) == ["ddim", "best-4"]


def test_label_of_the_teacher_is_its_own():
    with pytest.raises(ValueError, match="'teacher' is the teacher's own"):
        named_solvers({"teacher": "ddim"})


def test_file_for_every_number_of_evaluations(tmp_path):
    for steps in (2, 4):
        GeneralizedSolver(SCHEDULE, steps, prediction_type="sample").save(
            tmp_path / f"gs-{steps}.safetensors"
        )
    denoiser, teacher = make_denoiser(), build_solver("ddim", SCHEDULE, 10)
    solvers = {"gs": f"{tmp_path}/gs-{{nfe}}.safetensors", "two": f"{tmp_path}/gs-2.safetensors"}
    entries, left_out = build_entries(solvers, [2, 4], denoiser, teacher)
    assert [(entry.label, entry.steps) for entry in entries] == [
        ("teacher", 10),
        ("gs", 2),
        ("gs", 4),
        ("two", 2),
    ]
    assert left_out == []


def test_another_name_for_every_number_of_evaluations(tmp_path):
    GeneralizedSolver(SCHEDULE, 5, prediction_type="sample").save(tmp_path / "gs.safetensors")
    denoiser, teacher = make_denoiser(), build_solver("ddim", SCHEDULE, 10)
    solvers = named_solvers(
        {
            "UniPC": {2: "unipc-2@logsnr", 4: "unipc-3@quadratic"},
            "gs": {2: "ddim", 4: "ddim", 5: f"{tmp_path}/gs.safetensors"},
        }
    )
    entries, left_out = build_entries(solvers, [2, 4, 5], denoiser, teacher)
    expected = build_solver("unipc-3@quadratic", SCHEDULE, 4)
    assert [(entry.label, entry.steps, entry.kind) for entry in entries[1:]] == [
        ("UniPC", 2, "classical"),
        ("UniPC", 4, "classical"),
        ("gs", 2, "classical"),
        ("gs", 4, "classical"),
        ("gs", 5, "learned"),
    ]
    assert solver_identity(entries[2].solver, denoiser, None) == solver_identity(expected, denoiser, None)
    assert [(it.label, it.nfe) for it in left_out] == [("UniPC", 5)]
    assert "no solver was named for 5 evaluations, only for [2, 4]" in left_out[0].reason


def test_names_by_number_of_evaluations_need_a_label():
    with pytest.raises(ValueError, match="need a label"):
        named_solvers([{4: "unipc-3"}])


def test_identity_is_that_of_the_numbers(tmp_path):
    denoiser = make_denoiser()
    solver = GeneralizedSolver(SCHEDULE, 3, timesteps="logsnr", prediction_type="sample")
    solver.save(tmp_path / "s.safetensors")
    same = GeneralizedSolver.load(tmp_path / "s.safetensors")
    assert solver_identity(same, denoiser, None) == solver_identity(solver, denoiser, None)
    assert solver_identity(solver, denoiser, 2.0) != solver_identity(solver, denoiser, None)
    same.time_offsets.data[1] += 1e-6
    assert solver_identity(same, denoiser, None) != solver_identity(solver, denoiser, None)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [({"name": "other"}, "^mine was learned for teacher 'other'"), ({"weights_hash": "ab"}, "other weights")],
)
def test_solver_made_in_python_for_another_teacher_is_refused(teacher, message):
    solver = GeneralizedSolver(SCHEDULE, 3, prediction_type="sample")
    solver.teacher = teacher
    with pytest.raises(ValueError, match=message):
        build_entries({"mine": solver}, [3], make_denoiser(), build_solver("ddim", SCHEDULE, 10))
