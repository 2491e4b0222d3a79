"""The teacher's corrections of samples, as input of a discriminator."""

import pytest
import torch
from toy_run import randn

from gas_ext import NoiseSchedule
from gas_ext.denoisers import Denoiser
from gas_ext.teachers.demo import load_demo_teacher
from gas_ext.training.discriminators import TeacherView

SCALE = 0.5  # standard deviation of the data below


def gaussian_teacher(schedule, prediction_type, shape=(2, 5)):
    """The exact denoiser of N(0, SCALE^2), in any prediction type."""

    def output(x, t, condition):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        data = x * alpha * SCALE**2 / (alpha**2 * SCALE**2 + sigma**2)
        noise = (x - alpha * data) / sigma
        return {
            "sample": data,
            "epsilon": noise,
            "flow_prediction": noise - data,
            "v_prediction": (alpha * noise - sigma * data) / (alpha**2 + sigma**2).sqrt(),
        }[prediction_type].to(x.dtype)

    return Denoiser.from_callable(
        output, schedule=schedule, prediction_type=prediction_type, sample_shape=shape
    )


@pytest.mark.parametrize(
    ("schedule", "prediction_type"),
    [
        (NoiseSchedule.vp_linear(), "sample"),
        (NoiseSchedule.vp_linear(), "epsilon"),
        (NoiseSchedule.vp_linear(), "v_prediction"),
        (NoiseSchedule.edm(0.002, 80.0), "sample"),
        (NoiseSchedule.flow(), "flow_prediction"),
    ],
)
def test_corrections_of_a_gaussian_are_those_of_wiener_s_filter(schedule, prediction_type):
    levels = (0.02, 0.3, 1.5)
    samples = randn(3, 2, 5)
    view = TeacherView(gaussian_teacher(schedule, prediction_type), levels)
    shown = view(samples)
    assert tuple(shown.shape[1:]) == view.sample_shape == (8, 5)
    assert torch.equal(shown[:, :2], samples)
    for index, level in enumerate(levels, start=1):
        # x s^2 / (s^2 + k^2) - x, in units of k.
        expected = -samples * level / (SCALE**2 + level**2)
        assert torch.allclose(shown[:, 2 * index : 2 * index + 2], expected, rtol=1e-9, atol=1e-12)


def test_gradients_reach_the_samples_and_conditions_reach_the_teacher():
    seen = []

    def output(x, t, condition):
        seen.append((t.item(), condition))
        return torch.tanh(x)

    schedule = NoiseSchedule.vp_linear()
    teacher = Denoiser.from_callable(
        output, schedule=schedule, prediction_type="sample", sample_shape=(1, 4), condition_kind="tensor"
    )
    view = TeacherView(teacher, [0.1, 0.5])
    samples = torch.randn(2, 1, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: view(x, "condition"), samples)
    assert {condition for _, condition in seen} == {"condition"}
    ratios = {
        round(float(schedule.sigma(torch.tensor(t)) / schedule.alpha(torch.tensor(t))), 6) for t, _ in seen
    }
    assert ratios == {0.1, 0.5}


def test_conditions_are_encoded_as_for_the_sampler():
    """Prompts become a dict of tensors; what is encoded already passes through."""

    class Prompted(Denoiser):
        def predict(self, x, t, condition):
            return x * condition["scale"][:, None, None]

        def encode_condition(self, values):
            if isinstance(values, dict):
                return values
            return {"scale": torch.tensor([float(len(text)) for text in values], dtype=torch.float64)}

    teacher = Prompted(
        schedule=NoiseSchedule.edm(0.002, 80.0),
        prediction_type="sample",
        sample_shape=(1, 4),
        condition_kind="prompt",
    )
    view = TeacherView(teacher, [0.5])
    samples = torch.ones(2, 1, 4, dtype=torch.float64)
    shown = view(samples, ["a", "abc"])
    assert shown[:, 1, 0].tolist() == pytest.approx([0.0, 4.0])
    assert torch.equal(view(samples, teacher.encode_condition(["a", "abc"])), shown)


def test_labels_may_be_a_list():
    view = TeacherView(load_demo_teacher(), [0.3])
    images = torch.zeros(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(view(images, [1, 7]), view(images, torch.tensor([1, 7])))
        assert not torch.equal(view(images, [1, 7]), view(images, [1, 8]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_view_has_the_samples_dtype_whatever_the_network_s(dtype):
    network = torch.nn.Linear(4, 4)
    teacher = Denoiser.from_callable(
        lambda x, t, condition: network(x.float()),
        schedule=NoiseSchedule.vp_linear(),
        prediction_type="epsilon",
        sample_shape=(1, 4),
    )
    view, samples = TeacherView(teacher, [0.1]), randn(3, 1, 4, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        shown = view(samples)
    assert shown.dtype == dtype
    assert torch.equal(shown[:, :1], samples)
    # Of a noise prediction the correction is -eps, and its rounding is not magnified.
    exact = view(samples)[:, 1:]
    assert 0 < (shown[:, 1:] - exact).abs().max() < 2e-2


def test_recomputation_evaluates_twice_and_changes_nothing():
    teacher = gaussian_teacher(NoiseSchedule.vp_linear(), "sample")
    samples = randn(3, 2, 5)
    gradients, counts = [], []
    for recompute in (False, True):
        x = samples.clone().requires_grad_()
        before = teacher.evaluations
        shown = TeacherView(teacher, [0.1, 0.5], recompute=recompute)(x)
        gradients += torch.autograd.grad(shown.square().sum(), x)
        counts.append(teacher.evaluations - before)
    assert torch.equal(*gradients)
    assert counts == [2, 4]


def test_residual_noise_is_seen_by_the_embedded_teacher():
    teacher = load_demo_teacher()
    view = TeacherView(teacher, [0.05])
    clean = -torch.ones(4, 1, 32, 32)
    noisy = clean + 0.02 * randn(4, 1, 32, 32, dtype=torch.float32)
    labels = torch.arange(4)
    with torch.no_grad():
        strength = [view(images, labels)[:, 1].std().item() for images in (clean, noisy)]
    assert strength[1] > 2 * strength[0]


@pytest.mark.parametrize("levels", [[], [0.0], [-0.1, 0.2], [float("nan")], [float("inf")]])
def test_impossible_levels_are_refused(levels):
    with pytest.raises(ValueError, match="one or more numbers greater than 0 and from 0 to 152"):
        TeacherView(gaussian_teacher(NoiseSchedule.vp_linear(), "sample"), levels)


@pytest.mark.parametrize("level", [0.001, 100.0])
def test_levels_beyond_the_schedule_are_refused(level):
    with pytest.raises(ValueError, match=r"from 0\.002 to 80, the range of NoiseSchedule\.edm\(.*\)"):
        TeacherView(gaussian_teacher(NoiseSchedule.edm(0.002, 80.0), "sample"), [0.1, level])


def test_a_schedule_that_starts_at_pure_noise_has_every_level():
    view = TeacherView(gaussian_teacher(NoiseSchedule.flow(), "flow_prediction"), [1e-6, 1e6])
    assert bool(view(torch.ones(1, 2, 5, dtype=torch.float64)).isfinite().all())
