"""The coefficients of a finished solver are computed once, and again when something changed."""

import copy
import pickle

import pytest
import torch
from sampler_networks import VP, mixture, noise_of, randomize
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from gas_ext import GASSampler, GeneralizedSolver
from gas_ext.solvers import HeunSolver, UniPCSolver, baked

SOLVERS = {
    "learned": lambda: randomize(GeneralizedSolver(VP, 4), 0, 0.02),
    "unipc": lambda: UniPCSolver(VP, 4),
    "heun": lambda: HeunSolver(VP, 5, 1e-3),
}


def network(x, t, condition):
    return mixture(VP, x.dtype)(x, t, condition)


def counted(solver, monkeypatch):
    """Count how often the coefficients are computed."""
    calls = []
    compute = type(solver).coefficients

    def counting(self, *arguments):
        calls.append(arguments)
        return compute(self, *arguments)

    monkeypatch.setattr(type(solver), "coefficients", counting)
    return calls


@pytest.mark.parametrize("name", SOLVERS)
def test_a_finished_solver_computes_once(name, monkeypatch):
    sampler, noise = GASSampler(SOLVERS[name](), network), noise_of(3, 2)
    calls = counted(sampler.solver, monkeypatch)
    with torch.no_grad():
        first = sampler(noise)
        with torch.inference_mode():
            again = sampler(noise)
        shown, _ = sampler(noise, return_trajectory=True)
    assert len(calls) == 1
    assert torch.equal(first, again)
    assert torch.equal(first, shown)


def add(solver):
    with torch.no_grad():
        solver.data_corrections.add_(0.1)


def write_data(solver):
    solver.time_offsets.data[1] = 0.01


def write_by_numpy(solver):
    solver.timestep_logits.detach().numpy()[0] += 0.3


def fused_step(solver):
    """Fused optimizers write without torch's count of it."""
    solver.data_corrections.grad = torch.ones_like(solver.data_corrections)
    torch.optim.Adam([solver.data_corrections], lr=0.1, fused=True).step()


def replace_data(solver):
    solver.state_corrections.data = solver.state_corrections.data + 0.1


def load_another(solver):
    solver.load_state_dict(randomize(GeneralizedSolver(VP, 4), 1, 0.05).state_dict())


def new_parameter(solver):
    solver.time_offsets = torch.nn.Parameter(torch.full((4,), -0.01))


def in_single_precision(solver):
    solver.float()


CHANGES = [
    add,
    write_data,
    write_by_numpy,
    fused_step,
    replace_data,
    load_another,
    new_parameter,
    in_single_precision,
]


@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_parameters_are_followed(change):
    sampler, noise = GASSampler(SOLVERS["learned"](), network), noise_of(3, 2)
    with torch.no_grad():
        before = sampler(noise)
        change(sampler.solver)
        found = sampler(noise)
        expected = GASSampler(copy.deepcopy(sampler.solver), network)(noise)
    assert torch.equal(found, expected)
    assert not torch.equal(found, before)


def test_changed_settings_of_the_sampler_are_followed():
    def guided(x, t, condition):
        return network(x, t, None) + condition

    sampler, noise = GASSampler(SOLVERS["learned"](), guided, guidance_scale=2.0), noise_of(3, 2)
    conditions = torch.full((3, 1), 0.3).double(), torch.zeros(1).double()
    with torch.no_grad():
        twice = sampler(noise, *conditions)
        sampler.guidance_scale = 3.0
        thrice = sampler(noise, *conditions)
        sampler.solver = SOLVERS["unipc"]()
        by_another = sampler(noise, *conditions)
        expected = GASSampler(SOLVERS["unipc"](), guided, guidance_scale=3.0)(noise, *conditions)
    assert not torch.equal(twice, thrice)
    assert torch.equal(by_another, expected)


def test_training_sees_every_step():
    solver, noise = SOLVERS["learned"](), noise_of(3, 2)
    sampler = GASSampler(solver, network)
    optimizer = torch.optim.SGD(solver.parameters(), 1e-3)
    losses = []
    for _ in range(3):
        with torch.no_grad():
            shown = sampler(noise)
        sample = sampler(noise)
        assert torch.equal(sample, shown)
        optimizer.zero_grad()
        losses.append(sample.square().mean())
        losses[-1].backward()
        optimizer.step()
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.parametrize("name", SOLVERS)
def test_coefficients_baked_in_inference_mode_serve_gradients_of_the_noise(name):
    solver, noise = SOLVERS[name]().requires_grad_(False), noise_of(3, 2)
    sampler = GASSampler(solver, network)
    with torch.inference_mode():
        expected = sampler(noise)
    sample = sampler(noise.requires_grad_())
    sample.sum().backward()
    assert torch.equal(sample, expected)
    assert bool((noise.grad != 0).any())


def test_copies_follow_their_own_parameters():
    sampler, noise = GASSampler(SOLVERS["learned"](), network), noise_of(3, 2)
    with torch.no_grad():
        expected = sampler(noise)
        for other in (copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
            assert torch.equal(other(noise), expected)
            other.solver.data_corrections.add_(0.1)
            assert not torch.equal(other(noise), expected)
        assert torch.equal(sampler(noise), expected)
    assert set(sampler.state_dict()) == {f"solver.{name}" for name, _ in sampler.solver.named_parameters()}


def test_a_moved_solver_is_computed_again():
    sampler = GASSampler(SOLVERS["unipc"](), lambda x, t, condition: x)
    with torch.no_grad():
        sampler(noise_of(3, 2))
        sampler.to("meta")
        assert sampler(noise_of(3, 2).to("meta")).is_meta
        with pytest.raises(ValueError, match="noise is on cpu and the solver on meta"):
            sampler(noise_of(3, 2))


def test_another_stream_computes_its_own(monkeypatch):
    sampler, noise = GASSampler(UniPCSolver(VP, 4), network), noise_of(3, 2)
    calls, now = counted(sampler.solver, monkeypatch), []
    monkeypatch.setattr(baked, "_stream", lambda device: now[-1])
    counts = []
    with torch.no_grad():
        for stream in (1, 1, 2, 2, 1):
            now.append(stream)
            sampler(noise)
            counts.append(len(calls))
        monkeypatch.setattr(baked, "is_captured", lambda device: True)
        now.append(3)
        sampler(noise)  # nothing is computed, or copied to the device, while a graph is captured
        counts.append(len(calls))
    assert counts == [1, 1, 2, 2, 3, 3]


def test_captured_graphs_keep_their_coefficients_alive(monkeypatch):
    sampler, noise = GASSampler(UniPCSolver(VP, 4), network), noise_of(3, 2)
    monkeypatch.setattr("gas_ext.sampler.sampler.is_captured", lambda device: True)
    with torch.no_grad():
        sampler(noise)
        first = sampler._baked.coefficients
        sampler.bake()
        sampler(noise)
    assert sampler._captured[0] is first
    assert copy.deepcopy(sampler)._captured == []


@pytest.mark.parametrize("name", SOLVERS)
def test_times_and_trajectories_may_be_written_to(name):
    """A network that counts to 1000 may do so in place."""

    def careless(x, t, condition):
        return network(x, t.mul_(0.5), condition)

    sampler, noise = GASSampler(SOLVERS[name](), careless), noise_of(3, 2)
    with torch.no_grad():
        first, trajectory = sampler(noise, return_trajectory=True)
        trajectory.timesteps.zero_()
        second, trajectory = sampler(noise, return_trajectory=True)
    assert torch.equal(first, second)
    assert trajectory.timesteps[0] == 1.0


def test_a_custom_solver_is_computed_each_time(monkeypatch):
    class Custom:
        """A class that only satisfies the protocol may change at any time."""

        prediction_type = guidance_scale = None

        def __init__(self):
            self.solver = SOLVERS["learned"]()
            self.schedule, self.steps, self.t_eps = VP, 4, self.solver.t_eps

        def coefficients(self, *arguments):
            return self.solver.coefficients(*arguments)

    custom = Custom()
    calls = counted(custom, monkeypatch)
    with torch.no_grad():
        sampler = GASSampler(custom, network)
        assert torch.equal(sampler(noise_of(3, 2)), sampler(noise_of(3, 2)))
        assert not sampler.bake().timesteps.requires_grad
    assert len(calls) == 3


def test_bake_follows_other_changes():
    sampler, noise = GASSampler(SOLVERS["learned"](), network), noise_of(3, 2)
    with torch.no_grad():
        before = sampler(noise)
        sampler.solver.t_eps = 0.05
        table = sampler.bake()
        for tensor in (*table.rows, table.timesteps, table.evaluation_timesteps, *table.weights):
            tensor.zero_()  # a copy
        found, expected = sampler(noise), GASSampler(copy.deepcopy(sampler.solver), network)(noise)
    assert torch.equal(found, expected)
    assert not torch.equal(found, before)


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_made_in_inference_mode(name):
    expected = GASSampler(SOLVERS[name](), network)(noise_of(3, 2)).detach()
    with torch.inference_mode():
        sampler = GASSampler(SOLVERS[name](), network)
        assert torch.equal(sampler(noise_of(3, 2)), expected)
        assert torch.equal(copy.deepcopy(sampler)(noise_of(3, 2)), expected)


def test_fake_tensors_are_not_cached():
    sampler = GASSampler(UniPCSolver(VP, 4), lambda x, t, condition: x)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        assert isinstance(sampler(torch.empty(3, 2)), FakeTensor)
    with torch.no_grad():
        assert not isinstance(sampler(noise_of(3, 2)), FakeTensor)


def test_writes_within_a_dispatch_mode_are_followed():
    solver = SOLVERS["learned"]()
    sampler, noise = GASSampler(solver, network), noise_of(3, 2)
    with torch.no_grad(), FlopCounterMode(display=False):
        before = sampler(noise)
        solver.data_corrections.add_(0.1)
        assert not torch.equal(sampler(noise), before)


def test_writes_in_inference_mode_are_followed():
    with torch.inference_mode():
        solver = SOLVERS["learned"]()
        sampler, noise = GASSampler(solver, network), noise_of(3, 2)
        before = sampler(noise)
        solver.data_corrections.add_(0.1)
        assert not torch.equal(sampler(noise), before)


def test_a_derived_solver_is_computed_each_time():
    """It may depend on anything that its class adds."""

    class Drifting(GeneralizedSolver):
        drift = 0.0

        def weights(self, timesteps=None):
            weights = super().weights(timesteps)
            return weights._replace(data=weights.data + type(self).drift)

    sampler, noise = GASSampler(Drifting(VP, 4), network), noise_of(3, 2)
    with torch.no_grad():
        before = sampler(noise)
        Drifting.drift = 0.1
        assert not torch.equal(sampler(noise), before)
