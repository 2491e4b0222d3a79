import pytest
import torch
from mixture import SCHEDULE
from toy_run import same, toy_config, toy_denoiser

from gas_ext import Denoiser, GASSampler, GeneralizedSolver, NoiseSchedule
from gas_ext._utils.processes import Processes
from gas_ext._utils.progress import LogReporter, SilentReporter
from gas_ext.evaluation.metrics import l1_distance
from gas_ext.samples import SampleBatch, TeacherSamples
from gas_ext.training import TrainingConfig
from gas_ext.training.data import RunData
from gas_ext.training.start import make_start


@pytest.fixture
def data(toy_samples):
    config = TrainingConfig(batch_size=4)
    return RunData(TeacherSamples.open(toy_samples), toy_denoiser(), config, 12, 6, Processes())


def start(data, steps=3, preset="gs", **training):
    config = toy_config(training, student={"steps": [3], "t_eps": 1e-3, "preset": preset})
    return make_start(config, toy_denoiser(), data, steps, SilentReporter())


@torch.no_grad()
def distance(solver, data):
    batch = data.first_training(12)
    return l1_distance(GASSampler(solver, toy_denoiser())(batch.noise, batch.condition), batch.samples)


def test_each_start_is_closer_than_the_one_before(data):
    starts = {name: start(data, start=name) for name in ("published", "classical", "fitted")}
    solvers = {name: solver for name, (solver, _) in starts.items()}
    assert starts["published"][1] == "DPM-Solver++(3M), uniform times"
    assert same(solvers["published"], GeneralizedSolver(SCHEDULE, 3, t_eps=1e-3))
    assert (solvers["published"].order, solvers["published"].theory_order) == (3, 3)
    distances = {name: distance(solver, data) for name, solver in solvers.items()}
    assert distances["fitted"] < distances["classical"] < distances["published"]
    assert solvers["classical"].data_corrections.abs().max() == 0
    assert torch.equal(solvers["fitted"].timesteps(), solvers["classical"].timesteps())
    assert all(parameter.requires_grad for solver in solvers.values() for parameter in solver.parameters())


def test_the_default_is_fitted_and_with_a_rate_published(data):
    assert ", fitted" in start(data)[1]
    assert start(data, rate=1e-3)[1] == "DPM-Solver++(3M), uniform times"


@pytest.mark.parametrize("preset", ["ld3", "learned-times"])
def test_a_preset_without_weights_is_not_fitted(data, preset):
    solver, name = start(data, preset=preset)
    classical, expected_name = start(data, start="classical")
    assert (solver.preset, name) == (preset, expected_name)
    assert same(solver, classical)
    assert solver.data_corrections.abs().max() == solver.state_corrections.abs().max() == 0


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["s4s", "s4s-alt"])
def test_free_weights_start_as_the_theory_s_and_are_fitted(data, preset):
    classical, name = start(data, preset=preset, start="classical")
    guided, same_name = start(data, start="classical")
    assert name == same_name
    assert (classical.preset, classical.theory_guidance) == (preset, False)
    for weights, expected in zip(classical.weights(), guided.weights(), strict=True):
        assert torch.allclose(weights, expected, atol=1e-14, rtol=0)
    fitted, fitted_name = start(data, preset=preset)
    assert fitted_name.startswith(f"{name}, fitted")
    assert fitted.state_corrections.abs().max() == 0
    assert torch.equal(fitted.timesteps(), classical.timesteps())
    assert distance(fitted, data) < distance(classical, data)


def saved(tmp_path, steps=3, **options):
    solver = GeneralizedSolver(SCHEDULE, steps, timesteps="logsnr", **{"t_eps": 1e-3, **options})
    with torch.no_grad():
        solver.time_offsets.fill_(0.01)
        solver.data_corrections.fill_(0.02)
    solver.save(tmp_path / "other.safetensors", teacher={"name": "other", "weights_hash": "abc"})
    return solver, str(tmp_path / "other.safetensors")


def test_a_preset_that_learns_more_starts_from_one_that_learns_less(data, tmp_path):
    _, path = saved(tmp_path, preset="ld3")
    solver, _ = start(data, start=path)
    assert solver.preset == "gs"
    assert all(parameter.requires_grad for parameter in solver.parameters())


@pytest.mark.parametrize(("old", "new"), [("gs", "ld3"), ("ld3", "s4s"), ("learned-times", "s4s-alt")])
def test_a_preset_that_cannot_be_trained_with_another(data, tmp_path, old, new):
    _, path = saved(tmp_path, preset=old)
    message = f"with preset {old}, which cannot be trained with preset {new}; .* student.preset={old}"
    with pytest.raises(ValueError, match=message):
        start(data, preset=new, start=path)


def test_a_solver_for_another_data_set(data, tmp_path):
    other, path = saved(tmp_path, prediction_type="epsilon", guidance_scale=3.0)
    solver, name = start(data, start=path)
    assert name == path
    assert same(solver, other)
    assert (solver.prediction_type, solver.guidance_scale, solver.teacher) == ("sample", None, {})


def test_a_solver_in_float32_is_trained_in_float64(data, tmp_path):
    other, path = saved(tmp_path)
    other.float().save(path)
    assert {p.dtype for p in start(data, start=path)[0].parameters()} == {torch.float64}


@pytest.mark.parametrize(("steps", "preset"), [(2, "gs"), (5, "gs"), (5, "ld3")])
def test_a_solver_with_another_number_of_steps(data, tmp_path, steps, preset):
    _, path = saved(tmp_path, preset=preset)
    solver, name = start(data, steps, start=path, preset=preset)
    assert (solver.steps, solver.order, solver.preset) == (steps, steps, preset)
    assert name == f"{path}, resampled to {steps} steps" + (", fitted" if preset == "gs" else "")
    if preset == "gs":
        assert distance(solver, data) < distance(GeneralizedSolver(SCHEDULE, steps, timesteps="logsnr"), data)
    else:
        assert solver.data_corrections.abs().max() == 0


def test_files_that_do_not_fit(data, tmp_path):
    _, path = saved(tmp_path, t_eps=1e-2)
    with pytest.raises(ValueError, match=r"ends at t_eps 0\.01, not 0\.001; .* student\.t_eps=0\.01"):
        start(data, start=path)
    with pytest.raises(FileNotFoundError, match=r"There is no solver file nowhere\.safetensors"):
        start(data, start="nowhere.safetensors")


def test_a_schedule_that_forbids_fitting_is_reported():
    class Source:
        sample_shape = (2,)

        def __len__(self):
            return 8

        def batch(self, indices, *, images=True):
            noise = torch.randn(len(indices), 2, generator=torch.Generator().manual_seed(0))
            return SampleBatch(noise, noise.tanh(), None, None, None)

    flow = Denoiser.from_callable(
        lambda x, t, c: x, schedule=NoiseSchedule.flow(), prediction_type="flow_prediction", sample_shape=(2,)
    )
    source = RunData(Source(), flow, TrainingConfig(batch_size=4), 4, 4, Processes())
    lines = []
    solver, name = make_start(toy_config(), flow, source, 3, LogReporter(lines.append))
    assert "fitted" not in name
    assert any("without fitting: lambda is infinite at t = 1" in line for line in lines)
    assert solver.steps == 3
