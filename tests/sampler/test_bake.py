"""The coefficients of a finished solver are computed once, and again when torch knows of a change."""

import copy
import pickle

import pytest
import torch
from sampler_networks import VP, mixture, noise_of, randomize

from gas_ext import GASSampler, GeneralizedSolver
from gas_ext import sampler as sampler_module
from gas_ext.solvers import HeunSolver, UniPCSolver

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
    replace_data,
    load_another,
    new_parameter,
    in_single_precision,
]


@pytest.mark.parametrize("change", CHANGES)
def test_changes_that_torch_knows_of_are_followed(change):
    sampler, noise = GASSampler(SOLVERS["learned"](), network), noise_of(3, 2)
    with torch.no_grad():
        before = sampler(noise)
        change(sampler.solver)
        found = sampler(noise)
        expected = GASSampler(copy.deepcopy(sampler.solver), network)(noise)
    assert torch.equal(found, expected)
    assert not torch.equal(found, before)


def test_what_the_sampler_asks_for_is_followed():
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
def test_what_was_kept_in_inference_mode_serves_gradients_of_the_noise(name):
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
    calls = counted(sampler.solver, monkeypatch)
    streams = iter([("first",), ("first",), ("second",), ("second",), ("first",)])
    compute, now = sampler_module._version, []
    monkeypatch.setattr(sampler_module, "_version", lambda solver: [*compute(solver), *now])
    counts = []
    with torch.no_grad():
        for stream in streams:
            now[:] = [stream]
            sampler(noise)
            counts.append(len(calls))
    assert counts == [1, 1, 2, 2, 3]


@pytest.mark.parametrize("name", SOLVERS)
def test_what_is_handed_out_may_be_written_to(name):
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


def test_a_solver_of_another_kind_is_asked_each_time(monkeypatch):
    class Own:
        """What only looks like a solver may change as it likes."""

        prediction_type = guidance_scale = None

        def __init__(self):
            self.solver = SOLVERS["learned"]()
            self.schedule, self.steps, self.t_eps = VP, 4, self.solver.t_eps

        def coefficients(self, *arguments):
            return self.solver.coefficients(*arguments)

    own = Own()
    calls = counted(own, monkeypatch)
    with torch.no_grad():
        sampler = GASSampler(own, network)
        assert torch.equal(sampler(noise_of(3, 2)), sampler(noise_of(3, 2)))
    assert len(calls) == 2


@pytest.mark.parametrize("change", ["data", "numpy", "attribute"])
def test_bake_follows_what_torch_does_not_see(change):
    sampler, noise = GASSampler(SOLVERS["learned"](), network), noise_of(3, 2)
    with torch.no_grad():
        before = sampler(noise)
        if change == "data":
            sampler.solver.time_offsets.data[1] = 0.01
        elif change == "numpy":
            sampler.solver.timestep_logits.detach().numpy()[0] += 0.3
        else:
            sampler.solver.t_eps = 0.05
        table = sampler.bake()
        found, expected = sampler(noise), GASSampler(copy.deepcopy(sampler.solver), network)(noise)
    assert torch.equal(found, expected)
    assert not torch.equal(found, before)
    assert not table.timesteps.requires_grad


def test_parameters_of_inference_mode_are_read_each_time(monkeypatch):
    with torch.inference_mode():
        solver = SOLVERS["learned"]()
        sampler, noise = GASSampler(solver, network), noise_of(3, 2)
        before = sampler(noise)
        solver.data_corrections.add_(0.1)
        assert not torch.equal(sampler(noise), before)


def test_a_derived_solver_is_asked_each_time():
    """It may depend on what only its own class knows of."""

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
