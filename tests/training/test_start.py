import pytest
import torch
from mixture import SCHEDULE
from toy_run import toy_config, toy_denoiser

from gas_ext import Denoiser, GASSampler, GeneralizedSolver, NoiseSchedule
from gas_ext._utils.processes import Processes
from gas_ext._utils.progress import SilentReporter
from gas_ext.evaluation.metrics import l1_distance
from gas_ext.samples import TeacherSamples
from gas_ext.training import TrainingConfig
from gas_ext.training.data import RunData
from gas_ext.training.start import make_start


@pytest.fixture
def data(toy_samples):
    return RunData(
        TeacherSamples.open(toy_samples), toy_denoiser(), TrainingConfig(batch_size=4), 12, 6, Processes()
    )


def start(data, steps=3, denoiser=None, preset="gs", **training):
    config = toy_config(training, student={"steps": [3], "t_eps": 1e-3, "preset": preset})
    return make_start(config, denoiser or toy_denoiser(), data, steps, SilentReporter())


@torch.no_grad()
def distance(solver, data):
    batch = data.first(12)
    return l1_distance(GASSampler(solver, toy_denoiser())(batch.noise, batch.condition), batch.target)


def test_published(data):
    solver, name = start(data, start="published")
    assert name == "DPM-Solver++(3M), uniform times"
    expected = GeneralizedSolver(SCHEDULE, 3, t_eps=1e-3)
    assert all(torch.equal(p, q) for p, q in zip(solver.parameters(), expected.parameters(), strict=True))
    assert (solver.order, solver.theory_order) == (3, 3)


def test_each_start_is_nearer_than_the_one_before(data):
    solvers = {name: start(data, start=name)[0] for name in ("published", "classical", "fitted")}
    distances = {name: distance(solver, data) for name, solver in solvers.items()}
    assert distances["fitted"] < distances["classical"] < distances["published"]
    assert solvers["classical"].data_corrections.abs().max() == 0
    assert torch.equal(solvers["fitted"].timesteps(), solvers["classical"].timesteps())
    assert all(parameter.requires_grad for solver in solvers.values() for parameter in solver.parameters())


def test_the_default_is_fitted_and_with_a_rate_published(data):
    assert ", fitted" in start(data)[1]
    assert start(data, rate=1e-3)[1] == "DPM-Solver++(3M), uniform times"


@pytest.mark.parametrize("preset", ["ld3", "learned-times"])
def test_what_learns_no_weights_is_not_fitted(data, preset):
    solver, name = start(data, preset=preset)
    classical, expected_name = start(data, start="classical")
    assert (solver.preset, name) == (preset, expected_name)
    assert all(torch.equal(p, q) for p, q in zip(solver.parameters(), classical.parameters(), strict=True))
    assert solver.data_corrections.abs().max() == solver.state_corrections.abs().max() == 0


@pytest.mark.parametrize("preset", ["s4s", "s4s-alt"])
def test_free_weights_start_as_the_theory_s_and_are_fitted(data, preset):
    classical, name = start(data, preset=preset, start="classical")
    guided, same_name = start(data, start="classical")
    assert name == same_name
    assert (classical.preset, classical.theory_guidance) == (preset, False)
    for found, expected in zip(classical.weights(), guided.weights(), strict=True):
        assert torch.allclose(found, expected, atol=1e-14, rtol=0)
    fitted, fitted_name = start(data, preset=preset)
    assert fitted_name.startswith(f"{name}, fitted")
    assert fitted.state_corrections.abs().max() == 0
    assert torch.equal(fitted.timesteps(), classical.timesteps())
    assert distance(fitted, data) < distance(classical, data)


def test_a_kind_that_learns_more_goes_on_from_one_that_learns_less(data, tmp_path):
    _, path = saved(tmp_path, preset="ld3")
    solver, _ = start(data, start=path)
    assert solver.preset == "gs"
    assert all(parameter.requires_grad for parameter in solver.parameters())


@pytest.mark.parametrize(("there", "wanted"), [("gs", "ld3"), ("ld3", "s4s"), ("learned-times", "s4s-alt")])
def test_a_kind_that_cannot_go_on_as_another(data, tmp_path, there, wanted):
    _, path = saved(tmp_path, preset=there)
    with pytest.raises(ValueError, match=f"with preset {there}, which cannot be trained .* student.preset={there}"):
        start(data, preset=wanted, start=path)


def test_ld3_along_other_steps(data, tmp_path):
    _, path = saved(tmp_path, preset="ld3")
    solver, name = start(data, 5, preset="ld3", start=path)
    assert (solver.preset, name) == ("ld3", f"{path}, laid along 5 steps")
    assert solver.data_corrections.abs().max() == 0


def saved(tmp_path, steps=3, **options):
    solver = GeneralizedSolver(SCHEDULE, steps, timesteps="logsnr", **{"t_eps": 1e-3, **options})
    with torch.no_grad():
        solver.time_offsets.fill_(0.01)
        solver.data_corrections.fill_(0.02)
    solver.save(tmp_path / "other.safetensors", teacher={"name": "other", "weights_hash": "abc"})
    return solver, str(tmp_path / "other.safetensors")


def test_a_solver_of_another_data_set(data, tmp_path):
    other, path = saved(tmp_path, prediction_type="epsilon", guidance_scale=3.0)
    solver, name = start(data, start=path)
    assert name == path
    assert all(torch.equal(p, q) for p, q in zip(solver.parameters(), other.parameters(), strict=True))
    assert (solver.prediction_type, solver.guidance_scale, solver.teacher) == ("sample", None, {})


def test_a_solver_in_float32_is_learned_in_float64(data, tmp_path):
    other, path = saved(tmp_path)
    other.float().save(path)
    assert {p.dtype for p in start(data, start=path)[0].parameters()} == {torch.float64}


@pytest.mark.parametrize("steps", [2, 5])
def test_a_solver_of_another_number_of_steps(data, tmp_path, steps):
    _, path = saved(tmp_path)
    solver, name = start(data, steps, start=path)
    assert name == f"{path}, laid along {steps} steps, fitted"
    assert (solver.steps, solver.order) == (steps, steps)
    assert distance(solver, data) < distance(GeneralizedSolver(SCHEDULE, steps, timesteps="logsnr"), data)


def test_a_solver_that_ends_elsewhere(data, tmp_path):
    _, path = saved(tmp_path, t_eps=1e-2)
    with pytest.raises(ValueError, match=r"ends at t_eps 0\.01, not 0\.001: .* student\.t_eps=0\.01"):
        start(data, start=path)


def test_a_file_that_is_not_there(data):
    with pytest.raises(FileNotFoundError, match=r"There is no solver file nowhere\.safetensors"):
        start(data, start="nowhere.safetensors")


def test_where_nothing_can_be_fitted_that_is_told():
    class Source:
        sample_shape = (2,)

        def __len__(self):
            return 8

        def batch(self, indices, *, images=True):
            from gas_ext.samples import SampleBatch

            noise = torch.randn(len(indices), 2, generator=torch.Generator().manual_seed(0))
            return SampleBatch(noise, noise.tanh(), None, None, None)

    class Told(SilentReporter):
        lines = ()

        def message(self, text):
            self.lines = (*self.lines, text)

    flow = Denoiser.from_callable(
        lambda x, t, c: x, schedule=NoiseSchedule.flow(), prediction_type="flow_prediction", sample_shape=(2,)
    )
    source = RunData(Source(), flow, TrainingConfig(batch_size=4), 4, 4, Processes())
    reporter = Told()
    solver, name = make_start(toy_config(), flow, source, 3, reporter)
    assert "fitted" not in name
    assert "infinite in lambda" in reporter.lines[0]
    assert solver.steps == 3
