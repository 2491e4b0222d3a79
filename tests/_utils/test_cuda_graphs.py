"""Solves as CUDA graphs: recording, replay, cache and fallback, with a stand-in for graphs on the CPU."""

import copy
import pickle
import warnings

import pytest
import torch
from recorded_graph import stand_in_for_cuda
from sampler_networks import VP, noise_of, randomize
from torch import nn

from gas_ext import Denoiser, GASSampler, GeneralizedSolver
from gas_ext._utils.cuda_graphs import MAX_GRAPHS
from gas_ext.solvers import UniPCSolver

CALLS = 4 * 4  # of the network for one graph: three solves of four steps to warm up, and the recorded one


class Network(nn.Module):
    """A network with a parameter, that counts its calls."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.7, dtype=torch.float64), requires_grad=False)
        self.calls = 0

    def forward(self, x, t, condition):
        self.calls += 1
        y = torch.tanh(self.gain.to(x.dtype) * x) * (1.0 - t).to(x.dtype)
        if isinstance(condition, dict):
            y = y + condition["shift"].to(x.dtype) * condition["options"][1]
        elif isinstance(condition, torch.Tensor):
            y = y + condition.to(x.dtype)
        return y


def learned():
    return randomize(GeneralizedSolver(VP, 4), 0, 0.02)


def pair(solver=None, guidance_scale=None):
    """A sampler with graphs and one without, of one network and solver."""
    solver, network = solver or learned(), Network()
    graphed = GASSampler(solver, network, "sample", guidance_scale, cuda_graph=True)
    return graphed, GASSampler(solver, network, "sample", guidance_scale)


@pytest.fixture
def graphs(monkeypatch):
    return stand_in_for_cuda(monkeypatch)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def shift(value):
    return {"shift": torch.full((3, 1), value), "options": [None, 2.0, "plain"]}


@pytest.mark.parametrize("make", [learned, lambda: UniPCSolver(VP, 4)])
@pytest.mark.parametrize("guidance_scale", [None, 3.0])
@pytest.mark.parametrize("wrap", [torch.as_tensor, lambda value: shift(0.0) | {"shift": value}])
def test_replays_equal_the_plain_loop(graphs, make, guidance_scale, wrap):
    graphed, plain = pair(make(), guidance_scale)
    samples = []
    for seed in range(3):
        noise = torch.randn(3, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        conditions = [wrap(torch.full((3, 1), 0.1 * seed)), wrap(torch.zeros(1, 1))]
        found = graphed(noise, *conditions)
        assert torch.equal(found, plain(noise, *conditions))
        samples.append((found, found.clone()))
    assert [graph.replays for graph in graphs] == [3]
    assert graphed.denoiser.calls == CALLS + 3 * 4
    assert graphed.evaluations == plain.evaluations == 3 * 4
    assert all(torch.equal(found, copied) for found, copied in samples)  # later replays do not change them


def test_written_parameters_are_followed_without_a_new_graph(graphs):
    graphed, plain = pair()
    noise = noise_of(3, 2)
    before = graphed(noise)
    graphed.solver.data_corrections.add_(0.05)
    graphed.solver.time_offsets.data[1] = -0.01
    graphed.denoiser.gain.mul_(1.5)
    found = graphed(noise)
    assert torch.equal(found, plain(noise))
    assert not torch.equal(found, before)
    assert len(graphs) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["denoiser.gain", "solver.state_corrections"])
def test_a_moved_parameter_needs_a_new_graph(graphs, name):
    graphed, plain = pair()
    noise = noise_of(3, 2)
    graphed(noise)
    parameter = graphed.get_parameter(name)
    parameter.data = parameter.data + 0.1
    assert torch.equal(graphed(noise), plain(noise))
    assert len(graphs) == 2


def test_each_type_of_input_has_its_graph(graphs):
    graphed, plain = pair()
    noise = noise_of(3, 2)
    inputs = [
        (noise, None),
        (noise.float(), None),
        (noise[:2], None),
        (noise, torch.zeros(3, 1)),
        (noise, torch.zeros(3, 2)),
        (noise, shift(0.0)),
        (noise, shift(0.0) | {"options": (None, 2.0, "plain")}),
        (noise, shift(0.0) | {"options": [None, 3.0, "plain"]}),
        (noise, shift(0.0) | {"options": [None, 3, "plain"]}),
    ]
    for count, (x, condition) in enumerate(inputs, start=1):
        for _ in range(2):
            assert torch.equal(graphed(x, condition), plain(x, condition))
        assert len(graphs) == count


def test_settings_of_the_sampler_and_autocast_have_their_own_graphs(graphs):
    graphed, plain = pair()
    noise, condition = noise_of(3, 2), torch.ones(3, 1)
    for scale in (2.0, 3.0):
        graphed.guidance_scale = plain.guidance_scale = scale
        assert torch.equal(graphed(noise, condition, 0 * condition), plain(noise, condition, 0 * condition))
    graphed.prediction_type = plain.prediction_type = "v_prediction"
    assert torch.equal(graphed(noise, condition, 0 * condition), plain(noise, condition, 0 * condition))
    graphed.eval()
    graphed(noise, condition, 0 * condition)
    graphed.denoiser.train()
    graphed(noise, condition, 0 * condition)
    with torch.autocast("cpu", torch.bfloat16):
        graphed(noise, condition, 0 * condition)
    assert len(graphs) == 6


def test_the_latest_graphs_are_stored(graphs):
    graphed, _ = pair()
    batches = range(1, MAX_GRAPHS + 2)
    for batch in batches:
        graphed(noise_of(batch, 2))
        graphed(noise_of(1, 2))
    assert len(graphs) == MAX_GRAPHS + 1
    graphed(noise_of(1, 2))  # in use all the time
    assert len(graphs) == MAX_GRAPHS + 1
    graphed(noise_of(2, 2))  # released
    assert len(graphs) == MAX_GRAPHS + 2


def test_a_graph_recorded_in_inference_mode_serves_outside(graphs):
    graphed, plain = pair()
    noise = noise_of(3, 2)
    with torch.inference_mode():
        graphed(noise.clone())
    assert torch.equal(graphed(2 * noise), plain(2 * noise))
    assert len(graphs) == 1


def test_copies_start_without_graphs(graphs):
    graphed, plain = pair()
    noise = noise_of(3, 2)
    graphed(noise)
    for other in (copy.deepcopy(graphed), pickle.loads(pickle.dumps(graphed))):
        assert torch.equal(other(noise), plain(noise))
    assert len(graphs) == 3


def test_labels_are_encoded_before_recording(graphs):
    denoiser = Denoiser.from_callable(
        lambda x, t, labels: x * (1.0 - t) + 0.1 * labels[:, None],
        schedule=VP,
        prediction_type="sample",
        sample_shape=(2,),
        condition_kind="label",
        num_classes=5,
    )
    graphed = GASSampler(learned(), denoiser, guidance_scale=2.0, cuda_graph=True)
    plain = GASSampler(graphed.solver, denoiser, guidance_scale=2.0)
    for labels in ([0, 1, 2], [4, 4, 4]):
        assert torch.equal(graphed(noise_of(3, 2), labels), plain(noise_of(3, 2), labels))
    assert len(graphs) == 1
    with pytest.raises(ValueError, match="from 0 to 4"):
        graphed(noise_of(3, 2), [0, 1, 7])


def test_evaluations_to_warm_up_are_not_counted_even_where_recording_fails(graphs):
    def reads(x, t, condition):
        calls.append(t.item())
        return x

    calls = []
    graphed = GASSampler(learned(), reads, "sample", cuda_graph=True)
    with pytest.warns(RuntimeWarning, match="cannot be recorded"):
        graphed(noise_of(3, 2))
    assert graphed.evaluations == 4
    assert len(calls) > 4


# ---- fallback to the step-by-step solve


def check_fallback(graphed, plain, words, *inputs, **options):
    """The plain result, and one warning for two solves."""
    with pytest.warns(RuntimeWarning, match=words) as warned:
        results = [graphed(*inputs, **options) for _ in range(2)]
    assert len(warned) == 1
    for result in results:
        torch.testing.assert_close(result, plain(*inputs, **options), rtol=0, atol=0)


def test_a_cpu_runs_step_by_step():
    check_fallback(*pair(), r"is on cpu; move it to a CUDA device", noise_of(3, 2))


def test_recorded_gradients_run_step_by_step(graphs):
    graphed, plain = pair()
    with torch.enable_grad():
        check_fallback(graphed, plain, r"call it under torch\.no_grad", noise_of(3, 2))
        graphed(noise_of(3, 2)).sum().backward()
    assert bool((graphed.solver.data_corrections.grad != 0).any())
    assert not graphs


@pytest.mark.parametrize(
    ("words", "condition", "options"),
    [
        ("a trajectory is requested", None, {"return_trajectory": True}),
        ("the condition holds a Generator", torch.Generator(), {}),
    ],
)
def test_unsupported_calls_run_step_by_step(graphs, words, condition, options):
    check_fallback(*pair(), words, noise_of(3, 2), condition, **options)
    assert not graphs


def test_a_network_that_cannot_be_recorded_runs_step_by_step(graphs):
    def reads(x, t, condition):
        return x * t.item()

    solver = learned()
    graphed = GASSampler(solver, reads, "sample", cuda_graph=True)
    plain = GASSampler(solver, reads, "sample")
    check_fallback(graphed, plain, r"cannot be recorded \(operation not permitted", noise_of(3, 2))
    assert len(graphs) == 1  # the second solve does not try again


def test_each_reason_is_reported_once(graphs):
    graphed, _ = pair()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(2):
            graphed(noise_of(3, 2), return_trajectory=True)
            graphed(noise_of(3, 2), torch.Generator())
    assert len(warned) == 2


def test_errors_are_those_of_the_plain_loop(graphs):
    graphed = GASSampler(learned(), lambda x, t, condition: x[:, :1], "sample", cuda_graph=True)
    with pytest.raises(ValueError, match="it must return one output per input"):
        graphed(noise_of(3, 2))
    with pytest.raises(TypeError, match="must be floating point"):
        graphed(torch.zeros(3, 2, dtype=torch.int64))
