"""The interface of networks, and how the sampler uses it."""

import math
import warnings

import pytest
import torch
from torch import Tensor, nn

from gas_ext import Denoiser, GASSampler, GeneralizedSolver, NoiseSchedule
from gas_ext.teachers import load_demo_teacher
from gas_ext.training.baselines import classical_solver

SCHEDULE = NoiseSchedule.vp_linear()


def gaussian(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
    """Exact data prediction of N(condition, 1) data."""
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    mean = torch.zeros(len(x)) if condition is None else condition.to(torch.float64)
    mean = mean.to(x).reshape(-1, *[1] * (x.ndim - 1))
    return mean + (alpha / (alpha**2 + sigma**2)).to(x) * (x - alpha.to(x) * mean)


def labelled(**options) -> Denoiser:
    return Denoiser.from_callable(
        gaussian,
        **{
            "schedule": SCHEDULE,
            "prediction_type": "sample",
            "sample_shape": (2, 4),
            "condition_kind": "label",
            "num_classes": 5,
            **options,
        },
    )


def test_a_function_is_wrapped_in_three_lines():
    denoiser = Denoiser.from_callable(
        gaussian, schedule=SCHEDULE, prediction_type="sample", sample_shape=(2, 4)
    )
    solver = GeneralizedSolver(denoiser.schedule, steps=3)
    x = GASSampler(solver, denoiser)(torch.randn(5, *denoiser.sample_shape))
    assert x.shape == (5, 2, 4)
    assert denoiser.evaluations == 3


def test_a_guided_step_is_one_evaluation():
    denoiser = labelled()
    sampler = GASSampler(GeneralizedSolver(SCHEDULE, steps=4), denoiser, guidance_scale=2.0)
    sampler(torch.randn(3, 2, 4), condition=[0, 1, 2])
    assert denoiser.evaluations == sampler.evaluations == 4


def test_guidance_takes_the_unconditional_condition():
    denoiser, noise = labelled(), torch.randn(3, 2, 4)
    solver = GeneralizedSolver(SCHEDULE, steps=4)
    by_itself = GASSampler(solver, denoiser, guidance_scale=2.0)(noise, [0, 1, 2])
    by_hand = GASSampler(solver, gaussian, "sample", 2.0)(
        noise, torch.tensor([0, 1, 2]), torch.tensor(denoiser.num_classes)
    )
    assert torch.equal(by_itself, by_hand)


def test_prediction_type_comes_from_the_denoiser():
    denoiser = Denoiser.from_callable(
        lambda x, t, condition: x, schedule=SCHEDULE, prediction_type="epsilon", sample_shape=(2,)
    )
    solver = GeneralizedSolver(SCHEDULE, steps=2)
    assert GASSampler(solver, denoiser).prediction_type == "epsilon"
    with pytest.raises(ValueError, match="prediction_type 'epsilon', not 'sample'"):
        GASSampler(solver, denoiser, "sample")


def test_another_schedule_is_refused():
    with pytest.raises(ValueError, match=r"denoiser has NoiseSchedule\.vp_linear"):
        GASSampler(GeneralizedSolver(NoiseSchedule.flow(), steps=2), labelled())


@pytest.mark.parametrize("labels", [[0, 4, 5], (0, 4, 5), torch.tensor([0, 4, 5], dtype=torch.int32)])
def test_labels_become_int64(labels):
    encoded = labelled().encode_condition(labels)
    assert encoded.dtype == torch.int64
    assert encoded.tolist() == [0, 4, 5]


@pytest.mark.parametrize("labels", [[6], [-1], [0.5], [[1, 2]], "cat", ["cat"], [None]])
def test_impossible_labels_are_refused(labels):
    with pytest.raises(ValueError, match=r"integers|0 to 4"):
        labelled().encode_condition(labels)


def test_an_unconditional_model_refuses_a_condition():
    denoiser = Denoiser.from_callable(
        gaussian, schedule=SCHEDULE, prediction_type="sample", sample_shape=(2,)
    )
    with pytest.raises(ValueError, match="takes no condition"):
        GASSampler(GeneralizedSolver(SCHEDULE, steps=2), denoiser)(torch.randn(1, 2), [1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_shape": (0, 2)}, "sizes"),
        ({"prediction_type": "noise"}, "unknown"),
        ({"condition_kind": "text"}, "one of none"),
        ({"num_classes": None}, "num_classes"),
        ({"condition_kind": "none"}, "num_classes"),
        ({"t_eps": 2.0}, "t_eps is 2.0"),
        ({"t_eps": 0.0}, "t_eps is 0.0"),
        ({"t_eps": math.nan}, "t_eps is nan"),
    ],
)
def test_impossible_descriptions_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        labelled(**options)


def test_states_of_other_channels_are_named():
    teacher = load_demo_teacher()
    with pytest.raises(
        ValueError, match=r"shape \(2, 3, 32, 32\), but fashion-mnist-32 takes \(batch, 1, 32, 32\)"
    ):
        GASSampler(GeneralizedSolver(teacher.schedule, 2), teacher)(torch.zeros(2, 3, 32, 32))
    for shape in ((2, 32, 32), (1, 32)):
        with pytest.raises(ValueError, match=r"takes \(batch, 1, 32, 32\)"):
            teacher(torch.zeros(shape), torch.tensor(0.5))
    assert teacher(torch.zeros(2, 1, 16, 16), torch.tensor(0.5)).shape == (2, 1, 16, 16)  # sizes may differ
    with pytest.raises(ValueError, match=r"failed on states of shape \(2, 1, 15, 15\), while"):
        teacher(torch.zeros(2, 1, 15, 15), torch.tensor(0.5))


def test_out_of_memory_is_not_taken_for_a_wrong_size():
    def full(x: Tensor, t: Tensor, condition: object) -> Tensor:
        raise torch.OutOfMemoryError("full")

    denoiser = Denoiser.from_callable(full, schedule=SCHEDULE, prediction_type="sample", sample_shape=(2, 4))
    with pytest.raises(torch.OutOfMemoryError, match=r"^full$"):
        denoiser(torch.zeros(1, 2, 8), torch.tensor(0.5))


@pytest.mark.parametrize(
    ("learned_for", "warned"),
    [
        ({"name": "other", "weights_hash": ""}, True),
        ({"name": "mine", "weights_hash": "0"}, False),  # the network's own hash is not known
        ({"name": "mine"}, False),
        ({}, False),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_a_solver_of_another_teacher_is_used_with_a_warning(learned_for, warned, named):
    options = {"name": "mine"} if named else {}
    denoiser = Denoiser.from_callable(
        lambda x, t, condition: x,
        schedule=NoiseSchedule.flow(),
        prediction_type="sample",
        sample_shape=(2,),
        **options,
    )
    solver = GeneralizedSolver(denoiser.schedule, 2)
    solver.teacher = learned_for
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        GASSampler(solver, denoiser)
    assert len(caught) == (warned and named)
    denoiser.weights_hash = "1" * 64
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        GASSampler(solver, denoiser)
    assert len(caught) == (learned_for.get("weights_hash") == "0" or (warned and named))


def test_a_schedule_of_another_type_is_a_type_error():
    with pytest.raises(TypeError, match="NoiseSchedule"):
        labelled(schedule="linear")


def test_a_wrapped_module_moves_with_its_denoiser():
    network = nn.Linear(4, 4)

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x, t, condition):
            return self.network(x)

    denoiser = Denoiser.from_callable(
        Wrapped(), schedule=SCHEDULE, prediction_type="sample", sample_shape=(4,)
    )
    assert denoiser.double().device.type == "cpu"
    assert network.weight.dtype == torch.float64


def test_decoding_is_the_identity_unless_replaced():
    x = torch.randn(2, 2, 4)
    assert labelled().decode(x) is x
    assert torch.equal(labelled(decode=torch.tanh).decode(x), torch.tanh(x))


def test_a_denoiser_that_cannot_be_stored_raises(tmp_path):
    with pytest.raises(TypeError, match="cannot be stored in a folder"):
        labelled().save_weights(tmp_path)


@pytest.mark.slow
def test_sampling_compiles_and_gives_the_same():
    denoiser, noise = labelled(), torch.randn(3, 2, 4)
    sampler = GASSampler(GeneralizedSolver(SCHEDULE, steps=3), denoiser)
    labels = torch.tensor([0, 1, 2])
    with torch.no_grad():
        expected = sampler(noise, labels)
        compiled = torch.compile(sampler, fullgraph=False, backend="eager")(noise, labels)
    assert torch.allclose(expected, compiled, atol=1e-6)


def test_the_embedded_teacher_is_a_denoiser():
    teacher = load_demo_teacher()
    solver = classical_solver(teacher.schedule, 2, 2, "logsnr").solver
    sampler = GASSampler(solver, teacher, guidance_scale=1.5)
    with torch.no_grad():
        assert sampler(torch.randn(2, 1, 32, 32), condition=[3, 4]).shape == (2, 1, 32, 32)
    assert teacher.evaluations == 2
