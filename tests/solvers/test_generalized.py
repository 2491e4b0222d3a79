"""Parameters of the learned solver, their initial values, and its files."""

import json
import math
import os
import shutil

import numpy as np
import pytest
import torch
from golden_data import GOLDEN, knots
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from sampler_networks import randomize
from test_schedules import SCHEDULES

from gas_ext import GeneralizedSolver, NoiseSchedule
from gas_ext._utils.sealed_files import read_safetensors, write_sealed
from gas_ext.solvers.timesteps import SPACINGS, keep_inside, spaced_timesteps

VP = SCHEDULES["vp_linear"]


def parameters(solver: GeneralizedSolver) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in solver.named_parameters()}


@pytest.mark.parametrize(("steps", "order", "rows"), [(1, None, 1), (2, 1, 1), (5, 3, 3), (40, None, 32)])
def test_parameters(steps, order, rows):
    solver = GeneralizedSolver(VP, steps, order)
    assert solver.order == rows
    shapes = {name: tuple(value.shape) for name, value in parameters(solver).items()}
    assert shapes == {
        "timestep_logits": (steps - 1,),
        "time_offsets": (steps,),
        "data_corrections": (rows, steps),
        "state_corrections": (rows, steps),
    }
    assert solver.double() is solver


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_starts_at_the_given_times(name, spacing):
    schedule = SCHEDULES[name]
    solver = GeneralizedSolver(schedule, 6, timesteps=spacing)
    expected = spaced_timesteps(schedule, 6, 1e-3, spacing)
    torch.testing.assert_close(solver.timesteps().detach(), expected, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(solver.evaluation_timesteps().detach(), expected[:-1], rtol=1e-12, atol=1e-15)


def test_starts_at_a_list_of_times():
    times = [1.0, 0.5, 0.2, 0.01]
    solver = GeneralizedSolver(VP, 3, t_eps=0.01, timesteps=times)
    assert solver.timesteps().tolist() == pytest.approx(times, rel=1e-12)


def test_evaluation_times_follow_offsets_inside_and_bend_outside():
    solver = GeneralizedSolver(VP, 4)
    times = solver.timesteps().detach()
    with torch.no_grad():
        solver.time_offsets.copy_(torch.tensor([0.08, -0.05, 0.3, -0.1]))
    seen = solver.evaluation_timesteps().detach()
    torch.testing.assert_close(seen, times[:-1] + solver.time_offsets.detach(), rtol=1e-15, atol=0)
    with torch.no_grad():
        solver.time_offsets.copy_(torch.tensor([0.2, 9.0, -9.0, -0.2505]))
    seen = solver.evaluation_timesteps()
    assert seen[0] < 1.2
    assert 1.2 < seen[1] <= VP.t_max
    assert 0.0 < seen[2] < seen[3] < solver.t_eps
    (gradient,) = torch.autograd.grad(seen.sum(), solver.time_offsets)
    assert gradient[0] > 0.1
    assert gradient[3] > 0.1


def test_offsets_move_continuously():
    offsets = torch.linspace(-1.5, 0.5, 1001, dtype=torch.float64)
    steps = keep_inside(1.0 + offsets, VP, 1e-3).diff()
    assert bool((steps >= 0).all())
    assert steps.max() <= 2.001e-3


def test_flow_never_evaluates_beyond_one():
    solver = GeneralizedSolver(NoiseSchedule.flow(), 2)
    with torch.no_grad():
        solver.time_offsets.copy_(torch.tensor([0.5, -0.1]))
    assert solver.evaluation_timesteps().tolist() == pytest.approx([1.0, 0.4005])


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("first", [0.0, 0.123456789, 9.1])
def test_every_offset_can_be_learned(name, first):
    """Also the first where the domain ends at t = 1, on the cut and beyond it."""
    solver = GeneralizedSolver(SCHEDULES[name], 4)
    if solver.schedule.t_max == 1.0:
        solver.time_offsets.data[0] = first
        assert solver.evaluation_timesteps()[0] == 1.0
    (gradient,) = torch.autograd.grad(solver.evaluation_timesteps().sum(), solver.time_offsets)
    assert gradient.tolist() == [1.0] * 4


@pytest.mark.parametrize("theory_order", [1, 2, 3])
@pytest.mark.parametrize("compat", [None, "reference-s4s"])
def test_free_weights_start_at_the_theory_and_stay(theory_order, compat):
    shared = {"theory_order": theory_order, "timesteps": "logsnr"}
    guided = GeneralizedSolver(VP, 5, **shared)
    free = GeneralizedSolver(VP, 5, theory_guidance=False, compat=compat, **shared)
    ratio = guided.weights().state[:, 0] if compat else 1.0  # the reference multiplies D by it once more
    scale = ratio[:, None] if compat else 1.0
    torch.testing.assert_close(free.weights().data, scale * guided.weights().data, rtol=1e-12, atol=1e-15)
    if compat is None:
        assert torch.equal(free.weights().state, guided.weights().state)
    before = free.weights()
    with torch.no_grad():
        free.timestep_logits += 0.3
    after = free.weights()
    assert torch.equal(before.data, after.data) == (compat is None)
    assert not free.theory_guidance
    assert not torch.equal(before.state, after.state)  # sigma_{n+1} / sigma_n does follow the times


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"steps": 0}, ValueError, "steps is 0"),
        ({"order": 5}, ValueError, "order is 5"),
        ({"order": 0}, ValueError, "order is 0"),
        ({"steps": 50, "order": 33}, ValueError, "at most 32"),
        ({"t_eps": 0.0}, ValueError, "t_eps is 0.0"),
        ({"t_eps": 1.0}, ValueError, "t_eps is 1.0"),
        ({"t_eps": math.nan}, ValueError, "t_eps is nan"),
        ({"theory_order": 4}, ValueError, "theory_order"),
        ({"compat": "s4s"}, ValueError, "compat"),
        ({"prediction_type": "noise"}, ValueError, "noise"),
        ({"prediction_type": "epsilon", "schedule": NoiseSchedule.flow()}, ValueError, "alpha = 0"),
        ({"timesteps": "cosine"}, ValueError, "cosine"),
        ({"timesteps": [1.0, 0.5]}, ValueError, "Expected 5 timesteps"),
        ({"steps": 2, "timesteps": [1.0, 0.5, 0.1]}, ValueError, "Expected 3 timesteps"),
        ({"steps": 2, "timesteps": [0.9, 0.5, 1e-3]}, ValueError, "decrease strictly from 1"),
        ({"preset": "ld4"}, ValueError, "no preset 'ld4'; expected one of gs, ld3"),
        ({"preset": "s4s"}, ValueError, "preset s4s needs theory_guidance=False"),
        ({"preset": "ld3", "theory_guidance": False}, ValueError, "preset ld3 needs theory_guidance=True"),
        ({"steps": 4.0}, TypeError, "steps is 4.0, but must be an integer"),
        ({"steps": "4"}, TypeError, "steps is '4', but must be an integer"),
        ({"order": 2.0}, TypeError, "order is 2.0"),
        ({"theory_order": 3.0}, TypeError, "theory_order is 3.0"),
        ({"t_eps": "0.1"}, TypeError, "t_eps is '0.1'"),
        ({"guidance_scale": "7.5"}, TypeError, "guidance_scale is '7.5', but must be a single number"),
        ({"guidance_scale": torch.ones(2)}, TypeError, "guidance_scale is tensor"),
        ({"guidance_scale": math.nan}, ValueError, "guidance_scale is nan, but must be finite"),
        ({"guidance_scale": math.inf}, ValueError, "guidance_scale is inf"),
        ({"schedule": "flow"}, TypeError, "schedule is 'flow', but must be a NoiseSchedule"),
    ],
)
def test_constructor_refuses(arguments, error, words):
    with pytest.raises(error, match=words):
        GeneralizedSolver(**{"schedule": VP, "steps": 4, **arguments})


@pytest.mark.parametrize("scale", [np.float32(7.5), torch.tensor(7.5), 7.5])
def test_numbers_of_any_library_can_be_saved(tmp_path, scale):
    numbers = (np.int64(4), np.int64(2), np.float64(1e-3), np.bool_(True))
    solver = GeneralizedSolver(VP, *numbers, theory_order=np.int64(2), guidance_scale=scale)
    solver.save(tmp_path / "solver.safetensors")
    again = GeneralizedSolver.load(tmp_path / "solver.safetensors", guidance_scale=7.5)
    assert (again.steps, again.order, again.theory_order, again.guidance_scale) == (4, 2, 2, 7.5)


def test_coefficients_need_a_prediction_type():
    with pytest.raises(ValueError, match="prediction_type"):
        GeneralizedSolver(VP, 2).coefficients()


# ---- files


@pytest.fixture(name="solver")
def _solver() -> GeneralizedSolver:
    solver = GeneralizedSolver(VP, 4, 3, prediction_type="sample", guidance_scale=2.0, timesteps="edm")
    return randomize(solver, 0, 0.1)


@pytest.mark.slow
@given(
    st.sampled_from(sorted(SCHEDULES)),
    st.integers(1, 6),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    st.booleans(),
    st.integers(0, 2**31),
)
@settings(max_examples=40)
def test_round_trip_is_bit_exact(tmp_path_factory, name, steps, dtype, theory_guidance, seed):
    order = max(1, steps - 1)
    solver = GeneralizedSolver(SCHEDULES[name], steps, order, 2e-3, theory_guidance, theory_order=2)
    randomize(solver, seed, 0.5).to(dtype)
    path = tmp_path_factory.mktemp("solver") / "solver.safetensors"
    solver.save(path)
    again = GeneralizedSolver.load(path)
    for key, value in parameters(solver).items():
        assert again.get_parameter(key).dtype == dtype
        assert torch.equal(again.get_parameter(key).detach(), value)
    expected, found = (s.coefficients("sample") for s in (solver, again))
    assert all(torch.equal(a, b) for a, b in zip(expected.rows, found.rows, strict=True))
    assert torch.equal(expected.evaluation_timesteps, found.evaluation_timesteps)


def test_metadata_round_trip(solver, tmp_path):
    path = tmp_path / "deep" / "solver.safetensors"
    solver.save(path, teacher={"name": "toy", "weights_hash": "ab12"}, training={"iterations": 7})
    again = GeneralizedSolver.load(
        path, schedule=VP, prediction_type="sample", guidance_scale=2.0, weights_hash="ab12"
    )
    assert again.teacher == {"name": "toy", "weights_hash": "ab12"}
    assert again.training_summary == {"iterations": 7}
    assert (again.prediction_type, again.guidance_scale, again.order) == ("sample", 2.0, 3)
    again.save(path)  # with the metadata it was loaded with
    assert GeneralizedSolver.load(path).teacher["name"] == "toy"


@pytest.mark.parametrize(
    ("expected", "words"),
    [
        ({"schedule": NoiseSchedule.flow()}, "made for schedule"),
        ({"prediction_type": "epsilon"}, "made for prediction_type"),
        ({"guidance_scale": 7.5}, "made for guidance_scale 2.0, not 7.5"),
        ({"guidance_scale": np.float32(7.5)}, "made for guidance_scale 2.0, not 7.5"),
        ({"weights_hash": "cd"}, 'made for weights_hash "ab", not "cd"'),
    ],
)
def test_a_solver_for_something_else_is_refused_by_name(solver, tmp_path, expected, words):
    path = tmp_path / "solver.safetensors"
    solver.save(path, teacher={"name": "toy", "weights_hash": "ab"})
    with pytest.raises(ValueError, match=words):
        GeneralizedSolver.load(path, **expected)


def rewrite(path, change):
    """Apply `change(record, tensors)` to a solver file, with a matching checksum."""
    metadata, tensors = read_safetensors(path)
    record = json.loads(metadata["gas_ext_solver"])
    del record["sha256"]
    change(record, tensors)
    write_sealed(path, "gas_ext_solver", record, tensors)


def setting(**values):
    return lambda record, tensors: record.update(values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (setting(format_version=2), "format 2"),
        (setting(steps="4"), "'steps' is '4', but must be an int"),
        (setting(steps=5), "timestep_logits"),
        (setting(steps=10**4), r"holds \(3,\) torch.float64 numbers for timestep_logits, but 10000 steps"),
        (setting(steps=10**8), r"'steps' is 100000000, but must be an int of .*at most 10000"),
        (setting(guidance_scale=10**400), "'guidance_scale' is 1000.*, but must be an int or float or None"),
        (setting(t_eps=float("nan")), "'t_eps' is nan, but must be a float"),
        (setting(schedule={"family": "edm", "rho": 1e-5}), "rho is 1e-05, but must be 0.01 to 1000"),
        (setting(schedule={"family": "edm", "rho": 1e300}), r"rho is 1e\+300, but must be 0.01 to 1000"),
        (setting(schedule={"family": "edm", "sigma_max": 10**400}), "all finite"),
        (setting(schedule={"family": "edm", "sigma_min": 1e-300, "rho": 0.01}), "too far apart"),
        (setting(steps=0), "0 steps of order 3 need"),
        (setting(schedule={"family": "cosine"}), "cosine"),
        (setting(t_eps=2.0), "t_eps"),
        (setting(kind="dpm"), "does not describe a valid solver: There is no preset"),
        (setting(kind=["gs"]), "'kind' is .*, but must be a str"),
        (setting(kind=None), "'kind' is .*, but must be a str"),
        (lambda record, tensors: record.pop("teacher"), "'teacher' is missing"),
        (lambda record, tensors: tensors.pop("time_offsets"), "nothing for time_offsets"),
        (lambda record, tensors: tensors["time_offsets"].fill_(float("nan")), "not finite"),
        (lambda record, tensors: tensors.update(time_offsets=torch.zeros(4, dtype=torch.int64)), "int64"),
    ],
)
def test_altered_files_are_refused(solver, tmp_path, change, words):
    path = tmp_path / "solver.safetensors"
    solver.save(path)
    rewrite(path, change)
    with pytest.raises(ValueError, match=words):
        GeneralizedSolver.load(path)


def test_a_file_without_a_preset_is_gs(solver, tmp_path):
    path = tmp_path / "solver.safetensors"
    solver.save(path)
    rewrite(path, lambda record, tensors: record.pop("kind"))
    assert GeneralizedSolver.load(path).preset == "gs"


def test_damaged_and_foreign_files_are_refused(solver, tmp_path):
    path = tmp_path / "solver.safetensors"
    solver.save(path)
    whole = path.read_bytes()
    unversioned = whole.replace(b"format_version", b"format_Version")
    unsealed = whole.replace(b"sha256", b"sha255")
    for damaged, words in (
        *((content, "damaged") for content in (whole[:-8], whole[:20], b"", b"not a solver")),
        (unversioned, "format None"),
        (unsealed, "'sha256' is missing"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=words):
            GeneralizedSolver.load(path)
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="does not hold a solver"):
        GeneralizedSolver.load(path)
    for text, words in (("{", "not JSON"), ("[]", "not a JSON object")):
        save_file({"weight": torch.zeros(1)}, path, {"gas_ext_solver": text})
        with pytest.raises(ValueError, match=words):
            GeneralizedSolver.load(path)
    with pytest.raises(FileNotFoundError, match="no solver file"):
        GeneralizedSolver.load(tmp_path / "absent.safetensors")


def test_every_flipped_bit_is_noticed(solver, tmp_path):
    path = tmp_path / "solver.safetensors"
    solver.save(path, teacher={"name": "toy", "weights_hash": "ab12"}, training={"iterations": 7})
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged|format|not hold a solver"):
            GeneralizedSolver.load(path)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_follow_the_umask(solver, tmp_path, umask):
    before = os.umask(umask)
    try:
        solver.save(tmp_path / "solver.safetensors")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert (tmp_path / "solver.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask


def test_saving_is_atomic(solver, tmp_path, monkeypatch):
    path = tmp_path / "solver.safetensors"
    solver.save(path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            solver.save(path, training={"iterations": 1})
    with pytest.raises(TypeError, match="JSON"):
        solver.save(path, training={"not JSON": {1, 2}})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["solver.safetensors"]


# ---- published checkpoints (their content is compared in golden/test_checkpoints.py)

CHECKPOINT = GOLDEN / "checkpoints" / "steps5_latent_cfg.pt"


def test_reference_checkpoint_of_other_steps_is_refused():
    with pytest.raises(ValueError, match="not a student of 4 steps"):
        GeneralizedSolver.from_reference_checkpoint(CHECKPOINT, knots("sd", "f32"), steps=4)


def test_reference_checkpoint_without_theory_guidance():
    solver = GeneralizedSolver.from_reference_checkpoint(
        CHECKPOINT, knots("sd", "f32"), steps=5, theory_guidance=False, guidance_scale=7.5
    )
    assert (solver.compat, solver.theory_guidance, solver.guidance_scale) == ("reference-s4s", False, 7.5)


class Trap:
    """Writes a file when it is unpickled by a careless reader."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_reference_checkpoint_runs_no_code(tmp_path):
    path = tmp_path / "evil.pt"
    torch.save({"ema": {"shadow_params": [Trap(tmp_path / "trapped")]}}, path)
    with pytest.raises(ValueError, match="not a GS/GAS training checkpoint"):
        GeneralizedSolver.from_reference_checkpoint(path, VP, steps=4)
    assert not (tmp_path / "trapped").exists()


def test_other_files_are_not_reference_checkpoints(tmp_path):
    path = tmp_path / "file.pt"
    for content in ({"model": []}, {"ema": {"shadow_params": 3}}, [1], {"ema": {"shadow_params": []}}):
        torch.save(content, path)
        with pytest.raises(ValueError, match=r"checkpoint|not a student"):
            GeneralizedSolver.from_reference_checkpoint(path, VP, steps=4)
    shutil.copy(CHECKPOINT, path)
    os.chmod(path, 0o644)
    with path.open("r+b") as file:
        file.truncate(9000)
    for damage in (lambda: None, lambda: path.write_bytes(b"junk"), lambda: path.write_bytes(b"")):
        damage()
        with pytest.raises(ValueError, match="not a GS/GAS training checkpoint"):
            GeneralizedSolver.from_reference_checkpoint(path, VP, steps=5)
    with pytest.raises(FileNotFoundError):
        GeneralizedSolver.from_reference_checkpoint(tmp_path / "absent.pt", VP, steps=4)


def test_solvers_beyond_the_published_format_are_not_exported(tmp_path):
    for solver, reason in (
        (GeneralizedSolver(VP, steps=4, theory_guidance=False), "no free weights"),
        (GeneralizedSolver(VP, steps=4, theory_order=2), "from_solver"),
    ):
        with pytest.raises(ValueError, match=reason):
            solver.save_reference_checkpoint(tmp_path / "student.pt")
    assert list(tmp_path.iterdir()) == []


def test_reference_s4s_is_exported_too(tmp_path):
    solver = GeneralizedSolver(VP, steps=4, theory_guidance=False, compat="reference-s4s")
    solver.save_reference_checkpoint(tmp_path / "student.pt")
    again = GeneralizedSolver.from_reference_checkpoint(
        tmp_path / "student.pt", VP, steps=4, theory_guidance=False
    )
    for key, value in solver.named_parameters():
        assert torch.equal(again.get_parameter(key), value.float()), key
