import pytest
from comparison_tools import SCHEDULE, make_denoiser

from gas_ext import GeneralizedSolver
from gas_ext.evaluation.entries import build_entries, named_solvers, solver_identity
from gas_ext.solvers.registry import build_solver

TEACHER = build_solver("ddim", SCHEDULE, 10)


def save_solver(path, steps, **options):
    GeneralizedSolver(SCHEDULE, steps, prediction_type="sample").save(path, **options)


def test_labels():
    names = ["unipc-3", "A b=runs/x/solver.safetensors", "deis-2@1,0.5,0.001", "runs/gas_{nfe}/last.pt"]
    assert list(named_solvers(names)) == ["unipc-3", "A b", "deis-2@1,0.5,0.001", "gas"]
    assert list(named_solvers(["teacher", "ddim", "best-4.safetensors"])) == ["ddim", "best-4"]


@pytest.mark.parametrize(
    ("solvers", "message"),
    [
        ({"teacher": "ddim"}, "label 'teacher' is reserved"),
        ([{4: "unipc-3"}], "needs a label"),
        (["ddim", "ddim"], "Two solvers have the label 'ddim'"),
        ([], "no solvers to compare"),
        (["teacher"], "no solvers to compare"),
    ],
)
def test_wrong_labels_are_rejected(solvers, message):
    with pytest.raises(ValueError, match=message):
        named_solvers(solvers)


def test_file_for_each_nfe(tmp_path):
    for steps in (2, 4):
        save_solver(tmp_path / f"gs-{steps}.safetensors", steps)
    solvers = {"gs": f"{tmp_path}/gs-{{nfe}}.safetensors", "two": f"{tmp_path}/gs-2.safetensors"}
    entries, left_out = build_entries(solvers, [2, 4], make_denoiser(), TEACHER)
    found = [(entry.label, entry.steps) for entry in entries]
    assert found == [("teacher", 10), ("gs", 2), ("gs", 4), ("two", 2)]
    assert left_out == []


def test_name_for_each_nfe(tmp_path):
    save_solver(tmp_path / "gs.safetensors", 5)
    solvers = {
        "UniPC": {2: "unipc-2@logsnr", 4: "unipc-3@quadratic"},
        "gs": {2: "ddim", 4: "ddim", 5: f"{tmp_path}/gs.safetensors"},
    }
    denoiser = make_denoiser()
    entries, left_out = build_entries(named_solvers(solvers), [2, 4, 5], denoiser, TEACHER)
    assert [(entry.label, entry.steps, entry.kind) for entry in entries[1:]] == [
        *(("UniPC", steps, "classical") for steps in (2, 4)),
        *(("gs", steps, "classical") for steps in (2, 4)),
        ("gs", 5, "learned"),
    ]
    expected = build_solver("unipc-3@quadratic", SCHEDULE, 4)
    assert solver_identity(entries[2].solver, denoiser, None) == solver_identity(expected, denoiser, None)
    assert [(it.label, it.nfe) for it in left_out] == [("UniPC", 5)]
    assert "no solver for 5 evaluations, only for [2, 4]" in left_out[0].reason


def test_identity_covers_all_coefficients(tmp_path):
    denoiser = make_denoiser()
    solver = GeneralizedSolver(SCHEDULE, 3, timesteps="logsnr", prediction_type="sample")
    solver.save(tmp_path / "s.safetensors")
    same = GeneralizedSolver.load(tmp_path / "s.safetensors")
    assert solver_identity(same, denoiser, None) == solver_identity(solver, denoiser, None)
    assert solver_identity(solver, denoiser, 2.0) != solver_identity(solver, denoiser, None)
    same.time_offsets.data[1] += 1e-6
    assert solver_identity(same, denoiser, None) != solver_identity(solver, denoiser, None)


@pytest.mark.parametrize("from_file", [False, True])
@pytest.mark.parametrize(
    ("teacher", "message"),
    [({"name": "other"}, "learned for teacher 'other'"), ({"weights_hash": "ab"}, "other weights")],
)
def test_solver_of_another_teacher_is_rejected(tmp_path, teacher, message, from_file):
    path = tmp_path / "s.safetensors"
    save_solver(path, 3, teacher=teacher)
    solver = str(path) if from_file else GeneralizedSolver.load(path)
    with pytest.raises(ValueError, match=message):
        build_entries({"mine": solver}, [3], make_denoiser(), TEACHER)
