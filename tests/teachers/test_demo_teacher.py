"""The shipped teacher, its features, statistics and card."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gas_ext._utils.noise import seed_labels, stacked_noise
from gas_ext.evaluation.metrics import frechet_distance
from gas_ext.sampler import GASSampler
from gas_ext.solvers.generalized import GeneralizedSolver
from gas_ext.teachers import DemoTeacher, load_demo_features, load_demo_statistics, load_demo_teacher
from gas_ext.teachers.demo import WEIGHTS


@pytest.fixture(scope="module")
def teacher() -> DemoTeacher:
    return load_demo_teacher()


@pytest.fixture(scope="module")
def samples(teacher: DemoTeacher) -> Tensor:
    """Ten samples of each class among the seeds of the statistics."""
    seeds = range(100_000, 100_100)
    solver = GeneralizedSolver(teacher.schedule, 20, order=3, t_eps=teacher.t_eps, timesteps="logsnr")
    sampler = GASSampler(solver, teacher, prediction_type=teacher.prediction_type)
    with torch.no_grad():
        images = sampler(stacked_noise(seeds, teacher.sample_shape), seed_labels(seeds, 10))
    assert isinstance(images, Tensor)
    return images


def test_the_teacher_is_frozen_and_describes_itself(teacher: DemoTeacher) -> None:
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    assert (teacher.sample_shape, teacher.num_classes) == ((1, 32, 32), 10)
    assert (teacher.prediction_type, teacher.t_eps) == ("sample", 1e-3)
    assert teacher.schedule.to_dict() == type(teacher.schedule).vp_linear(0.1, 20.0).to_dict()


def test_the_teacher_evaluates_the_edm_denoiser_in_vp_coordinates(teacher: DemoTeacher) -> None:
    x = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.1, 0.7], dtype=torch.float64)
    alpha, sigma = teacher.schedule.alpha(t), teacher.schedule.sigma(t)
    labels = torch.tensor([2, 10])
    y = (x.double() / alpha[:, None, None, None]).float()
    expected = teacher.network(y, sigma / alpha, labels)
    torch.testing.assert_close(teacher(x, t, labels), expected, rtol=1e-5, atol=1e-5)


def test_times_and_labels_broadcast(teacher: DemoTeacher) -> None:
    x = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    t = torch.tensor(0.4, dtype=torch.float64)
    expected = teacher(x, t.expand(3), torch.tensor([10, 10, 10]))
    assert torch.equal(teacher(x, t, torch.tensor(10)), expected)
    assert torch.equal(teacher(x, t), expected)


@pytest.mark.parametrize("t", [1e-4, 1e-3, 0.999, 1.0])
def test_the_ends_of_the_schedule_are_finite(teacher: DemoTeacher, t: float) -> None:
    x = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(2))
    output = teacher(x, torch.tensor(t, dtype=torch.float64), torch.tensor([4]))
    assert output.isfinite().all()
    assert output.abs().max() < 10


def test_time_is_differentiable(teacher: DemoTeacher) -> None:
    x = stacked_noise([3], teacher.sample_shape)
    labels = torch.tensor([3])
    t = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    double = load_demo_teacher().double()
    double(x.double(), t, labels).mean().backward()
    with torch.no_grad():
        ends = [double(x.double(), t + step, labels).mean() for step in (1e-5, -1e-5)]
    assert t.grad is not None
    assert t.grad.item() == pytest.approx(((ends[0] - ends[1]) / 2e-5).item(), rel=1e-4)


@pytest.mark.slow
def test_the_teacher_is_traced_in_one_graph(teacher: DemoTeacher) -> None:
    x, labels = stacked_noise([5], teacher.sample_shape), torch.tensor([5])
    t = torch.tensor(0.3, dtype=torch.float64)
    compiled = torch.compile(teacher, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, t, labels), teacher(x, t, labels), rtol=0, atol=1e-6)


def test_the_card_names_the_files_as_they_are(teacher: DemoTeacher) -> None:
    card = (WEIGHTS / "README.md").read_text()
    largest = {"denoiser": 8e6, "features": 1e6, "statistics": 2e5}
    rows = re.findall(r"\| (\w+)\.safetensors \| ([\d,]+) \| `(\w{64})` \|", card)
    assert {name for name, _, _ in rows} == set(largest)
    for name, size, digest in rows:
        content = (WEIGHTS / f"{name}.safetensors").read_bytes()
        assert len(content) == int(size.replace(",", "")) <= largest[name]
        assert hashlib.sha256(content).hexdigest() == digest
    assert teacher.weights_hash == dict((name, digest) for name, _, digest in rows)["denoiser"]
    assert (WEIGHTS / "samples.png").stat().st_size <= 1e6


@pytest.mark.slow
def test_fresh_samples_agree_with_the_shipped_statistics(samples: Tensor) -> None:
    mean, covariance, count = load_demo_statistics()["teacher"]
    assert count == 10_000
    features = load_demo_features()(samples).double()
    # Each feature's mean over 100 samples, in standard errors of an unstratified draw.
    deviation = (features.mean(0) - mean) / (covariance.diagonal() / len(samples)).sqrt()
    assert deviation.abs().max() < 4


def test_statistics_are_covariances_of_close_distributions() -> None:
    statistics = load_demo_statistics()
    for mean, covariance, count in statistics.values():
        assert mean.dtype == covariance.dtype == torch.float64
        assert mean.shape == (64,)
        assert count >= 10_000
        torch.testing.assert_close(covariance, covariance.T, rtol=0, atol=1e-12)
        assert torch.linalg.eigvalsh(covariance).min() > 0
    spread = statistics["data"][1].trace().item()
    assert frechet_distance(*statistics["data"][:2], *statistics["teacher"][:2]) < 0.1 * spread


@pytest.mark.slow
def test_samples_look_like_their_classes(samples: Tensor) -> None:
    """The classifier, which never saw a teacher sample, finds most labels."""
    found = load_demo_features().logits(samples).argmax(dim=1)
    assert (found == torch.arange(100) % 10).float().mean() > 0.75


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"denoiser\.safetensors is missing; reinstall"):
        load_demo_teacher(folder=tmp_path)
    content = (WEIGHTS / "features.safetensors").read_bytes()
    (tmp_path / "features.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"features\.safetensors is damaged"):
        load_demo_features(folder=tmp_path)
