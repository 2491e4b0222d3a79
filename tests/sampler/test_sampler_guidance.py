"""Classifier-free guidance: two evaluations as one, any type of condition, errors."""

import numpy as np
import pytest
import torch
from sampler_networks import VP, labelled, noise_of, randomize

from gas_ext import GASSampler, GeneralizedSolver


@pytest.mark.parametrize("unconditional_shape", [(), (1,), (1, 1), (4, 1)])
def test_guidance_is_two_evaluations_combined(unconditional_shape):
    solver = randomize(GeneralizedSolver(VP, 4), 0, 0.02)
    condition, scale = noise_of(4, 1), 3.0
    empty = torch.full(unconditional_shape, 0.1)

    def by_hand(x, t, _):
        guided, free = (
            labelled(x, t, condition),
            labelled(x, t, torch.full_like(condition, float(empty.max()))),
        )
        return free + scale * (guided - free)

    with torch.no_grad():
        expected = GASSampler(solver, by_hand)(noise_of(4, 3))
        found = GASSampler(solver, labelled, "sample", scale)(noise_of(4, 3), condition, empty)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_guidance_calls_the_network_once_on_the_doubled_batch():
    shapes = []

    def network(x, t, condition):
        shapes.append((tuple(x.shape), condition.tolist()))
        assert torch.equal(x[:2], x[2:])
        return x

    sampler = GASSampler(GeneralizedSolver(VP, 2), network, "epsilon", 2.0)
    with torch.no_grad():
        sampler(noise_of(2, 3), torch.tensor([3, 4]), torch.tensor(10))
    assert shapes == [((4, 3), [10, 10, 3, 4])] * 2


@pytest.mark.parametrize("wrap", [lambda c: c, lambda c: {"a": c, "b": 1}])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_condition_guides_all_samples(shape, wrap):
    def network(x, t, condition):
        condition = condition["a"] if isinstance(condition, dict) else condition
        return labelled(x, t, condition.reshape(-1, 1))

    sampler = GASSampler(GeneralizedSolver(VP, 2), network, "sample", 2.0)
    one, empty = torch.full(shape, 0.7), torch.full(shape, 0.1)
    with torch.no_grad():
        expected = sampler(noise_of(3, 2), wrap(one.expand(3, *shape[1:])), wrap(empty))
        found = sampler(noise_of(3, 2), wrap(one), wrap(empty))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("scale", [None, 1.0])
def test_scale_one_is_one_conditional_evaluation(scale):
    def network(x, t, condition):
        assert condition.shape == (2, 1)
        return labelled(x, t, condition)

    with torch.no_grad():
        out = GASSampler(GeneralizedSolver(VP, 2), network, "sample", scale)(noise_of(2, 3), noise_of(2, 1))
    assert out.shape == (2, 3)


@pytest.mark.parametrize("wrap", [lambda c: {"a": c, "b": [c]}, lambda c: (c, {"b": c})])
def test_conditions_may_be_containers(wrap):
    def network(x, t, condition):
        first, second = condition.values() if isinstance(condition, dict) else condition
        second = next(iter(second.values())) if isinstance(second, dict) else second[0]
        assert torch.equal(first, second)
        return labelled(x, t, first)

    solver = GeneralizedSolver(VP, 2)
    condition, empty = noise_of(3, 1), torch.zeros(1, 1)
    with torch.no_grad():
        expected = GASSampler(solver, labelled, "sample", 2.0)(noise_of(3, 2), condition, empty)
        found = GASSampler(solver, network, "sample", 2.0)(noise_of(3, 2), wrap(condition), wrap(empty))
    assert torch.equal(found, expected)


def test_the_solvers_own_guidance_and_prediction_type_are_used():
    solver = GeneralizedSolver(VP, 2, prediction_type="epsilon", guidance_scale=2.0)
    sampler = GASSampler(solver, labelled)
    assert (sampler.prediction_type, sampler.guidance_scale, sampler.guided) == ("epsilon", 2.0, True)


# ---- errors


@pytest.mark.parametrize(("scale", "error"), [("7.5", TypeError), (float("nan"), ValueError)])
def test_guidance_scale_must_be_a_finite_number(scale, error):
    with pytest.raises(error, match="guidance_scale is"):
        GASSampler(GeneralizedSolver(VP, 2), labelled, guidance_scale=scale)


@pytest.mark.parametrize("scale", [np.float32(2.0), torch.tensor(2.0)])
def test_guidance_scale_of_any_library(scale):
    assert type(GASSampler(GeneralizedSolver(VP, 2), labelled, guidance_scale=scale).guidance_scale) is float


@pytest.mark.parametrize("option", [None, "lanczos", 3, True])
def test_guidance_hands_equal_plain_values_through(option):
    def network(x, t, condition):
        assert condition["option"] is option
        return labelled(x, t, condition["emb"])

    def with_option(emb):
        return {"emb": emb, "option": option}

    solver = GeneralizedSolver(VP, 2)
    conditions = torch.ones(2, 1), torch.zeros(1, 1)
    with torch.no_grad():
        expected = GASSampler(solver, labelled, "sample", 2.0)(noise_of(2, 3), *conditions)
        found = GASSampler(solver, network, "sample", 2.0)(noise_of(2, 3), *map(with_option, conditions))
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        ((), "needs condition"),
        (({"a": torch.ones(2, 1), "b": 1}, {"a": torch.ones(2, 1), "b": 2}), "type int"),
        (({"a": torch.ones(2, 1)}, {"a": None}), "type NoneType"),
        ((torch.ones(2, 1),), "needs unconditional_condition"),
        ((torch.ones(2, 1), torch.ones(3, 1)), "does not broadcast"),
        ((torch.ones(3, 1), torch.ones(3, 1)), "Got 2 samples and a condition of 3; give one per sample"),
        ((torch.ones(2, 1), "empty"), "type str"),
        (({"a": torch.ones(2, 1)}, {"b": torch.ones(2, 1)}), "like containers"),
        (([torch.ones(2, 1)], []), "like containers"),
    ],
)
def test_guidance_needs_both_conditions(conditions, words):
    with pytest.raises(ValueError, match=words):
        GASSampler(GeneralizedSolver(VP, 2), labelled, "sample", 2.0)(noise_of(2, 3), *conditions)


@pytest.mark.parametrize(
    ("made_for", "given", "words"),
    [
        (
            {"prediction_type": "sample"},
            {"prediction_type": "epsilon"},
            "prediction_type 'sample', not 'epsilon'",
        ),
        ({"guidance_scale": 2.0}, {"guidance_scale": 7.5}, "guidance_scale 2.0, not 7.5"),
        ({}, {"prediction_type": "noise"}, "noise"),
    ],
)
def test_a_mismatching_solver_is_refused(made_for, given, words):
    with pytest.raises(ValueError, match=words):
        GASSampler(GeneralizedSolver(VP, 2, **made_for), labelled, **given)
