import pytest
import torch
from toy_run import toy_config, toy_denoiser

from gas_ext import GASSampler, GeneralizedSolver
from gas_ext._utils.processes import Processes
from gas_ext.samples import TeacherSamples, generate_samples
from gas_ext.training import TrainingConfig
from gas_ext.training.data import RunData
from gas_ext.training.losses import l1_loss
from gas_ext.training.objective import Objective
from gas_ext.training.validation import Validation, validate


class Rank(Processes):
    """One of several processes that never meet."""

    def __init__(self, rank, count):
        self.rank, self.count = rank, count


@pytest.fixture
def source(toy_samples):
    return TeacherSamples.open(toy_samples)


def make_data(source, processes=None, batch_size=4, **options):
    config = TrainingConfig(batch_size=batch_size)
    return RunData(source, toy_denoiser(), config, 12, 6, processes or Processes(), **options)


def test_batches_follow_from_the_iteration_alone(source):
    data = make_data(source, fresh_noise=True)
    later = data.training_batch(7)
    for iteration in (0, 7, 3, 7):
        batch = data.training_batch(iteration)
    assert torch.equal(batch.noise, later.noise)
    assert torch.equal(batch.fresh_noise, later.fresh_noise)
    assert not torch.equal(data.training_batch(8).noise, later.noise)


def test_training_sees_the_first_samples_and_validation_the_next(source):
    data = make_data(source)
    rows = torch.cat([data.training_batch(i).target for i in range(3)])
    training, validation = source.batch(range(12)).samples, source.batch(range(12, 18)).samples
    assert {tuple(row.flatten().tolist()) for row in rows} == {
        tuple(row.flatten().tolist()) for row in training
    }
    assert torch.equal(torch.cat([batch.target for batch in data.validation_batches()]), validation)
    assert torch.equal(data.shown(4).target, validation[:4])
    assert torch.equal(data.first(5).target, training[:5])
    assert len(data.shown(99)) == 6


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_a_batch(source, count):
    whole = make_data(source, fresh_noise=True).training_batch(5)
    shares = [make_data(source, Rank(r, count), fresh_noise=True).training_batch(5) for r in range(count)]
    for name in ("noise", "target", "condition", "fresh_noise"):
        assert torch.equal(torch.cat([getattr(share, name) for share in shares]), getattr(whole, name))


def test_processes_share_the_validation_samples(source):
    shares = [
        torch.cat([batch.target for batch in make_data(source, Rank(r, 2), 2).validation_batches()])
        for r in range(2)
    ]
    expected = source.batch(range(12, 18)).samples
    assert torch.equal(torch.cat(shares).sort(0).values, expected.sort(0).values)


def test_labels_are_for_conditional_discriminators(source):
    assert make_data(source).training_batch(0).labels is None
    batch = make_data(source, labels=True).training_batch(0)
    assert torch.equal(batch.labels, batch.condition)


def test_too_few_samples(source):
    with pytest.raises(
        ValueError, match=r"holds 18 samples, but training \(12\) and validation \(7\) need 19"
    ):
        RunData(source, toy_denoiser(), TrainingConfig(), 12, 7, Processes())


def test_images_that_were_not_kept(source):
    with pytest.raises(
        ValueError, match=r"latents without their images, .* gas-ext teach --images, or use l1"
    ):
        make_data(source, images=True)


@pytest.mark.parametrize("images", [False, True])
def test_images_are_read_only_where_they_are_compared(tmp_path, images):
    denoiser = toy_denoiser(decode=lambda x: x.flatten(1))
    solver = toy_config().teacher_solver.build(denoiser.schedule, 3)
    source = generate_samples(denoiser, solver, range(18), tmp_path, images=True)
    read, batch = [], source.batch
    source.batch = lambda indices, *, images: read.append(images) or batch(indices, images=images)
    data = make_data(source, images=images)
    assert (data.training_batch(0).images is not None) == images
    assert all((part.images is not None) == images for part in data.validation_batches())
    assert set(read) == {images}


def test_validation_is_a_mean_over_all_samples(source):
    solver = GeneralizedSolver(toy_denoiser().schedule, 3)
    sampler = GASSampler(solver, toy_denoiser())
    batch = source.batch(range(12, 18))
    with torch.no_grad():
        expected = (sampler(batch.noise, batch.condition) - batch.samples).abs().mean().item()
    found = validate(sampler, Objective(sampler, lambda a, b: 2 * l1_loss(a, b)), make_data(source), 5, 1)
    assert found.l1 == pytest.approx(expected, rel=1e-6)
    assert found.loss == pytest.approx(2 * expected, rel=1e-6)
    assert (found.iteration, found.rejected) == (5, 1)


def test_the_better_validation():
    nan = float("nan")
    assert Validation(0, 1.0, 1.0).better_than(None)
    assert Validation(1, 0.5, 9.0).better_than(Validation(0, 1.0, 1.0))
    assert not Validation(1, 1.0, 0.5).better_than(Validation(0, 1.0, 1.0))
    assert not Validation(1, nan, nan).better_than(Validation(0, 1.0, 1.0))
    assert Validation(1, 1.0, 1.0).better_than(Validation(0, nan, nan))
