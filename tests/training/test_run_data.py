"""Batches of a run, its validation, and the signals that stop it."""

import math
import os
import signal
import threading

import pytest
import torch
from toy_run import toy_config, toy_denoiser

from gas_ext import GASSampler, GeneralizedSolver
from gas_ext._utils.processes import Processes
from gas_ext.samples import TeacherSamples, generate_samples
from gas_ext.training import TrainingConfig, Validation
from gas_ext.training.data import RunData
from gas_ext.training.losses import l1_loss
from gas_ext.training.objective import Objective
from gas_ext.training.trainer import StopRequest, validate


class Rank(Processes):
    """One of several processes that never meet."""

    def __init__(self, rank, count):
        self.rank, self.count = rank, count


@pytest.fixture
def source(toy_samples):
    return TeacherSamples.open(toy_samples)


def make_data(source, processes=None, batch_size=4, validation=6, **options):
    config = TrainingConfig(batch_size=batch_size)
    return RunData(source, toy_denoiser(), config, 12, validation, processes or Processes(), **options)


def validation_rows(data):
    return torch.cat([batch.samples for batch in data.validation_batches()])


def test_batches_depend_on_the_iteration_alone(source):
    data = make_data(source)
    later = data.training_batch(7)
    for iteration in (0, 7, 3, 7):
        batch = data.training_batch(iteration)
    assert torch.equal(batch.noise, later.noise)
    assert not torch.equal(data.training_batch(8).noise, later.noise)


def test_training_sees_the_first_samples_and_validation_the_next(source):
    data = make_data(source)
    rows = torch.cat([data.training_batch(i).samples for i in range(3)])
    training, validation = source.batch(range(12)).samples, source.batch(range(12, 18)).samples
    assert sorted(rows.flatten(1).tolist()) == sorted(training.flatten(1).tolist())
    assert torch.equal(validation_rows(data), validation)
    assert torch.equal(data.first_validation(4).samples, validation[:4])
    assert torch.equal(data.first_training(5).samples, training[:5])
    assert len(data.first_validation(99).noise) == 6


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_a_batch(source, count):
    whole = make_data(source).training_batch(5)
    shares = [make_data(source, Rank(rank, count)).training_batch(5) for rank in range(count)]
    for name in ("noise", "samples", "condition"):
        assert torch.equal(torch.cat([getattr(share, name) for share in shares]), getattr(whole, name))


def test_processes_share_the_validation_samples(source):
    shares = torch.cat([validation_rows(make_data(source, Rank(rank, 2), 2)) for rank in range(2)])
    assert torch.equal(shares.sort(0).values, source.batch(range(12, 18)).samples.sort(0).values)


def test_too_few_samples_and_missing_images_are_refused(source):
    with pytest.raises(ValueError, match=r"18 samples, but training \(12\) and validation \(7\) need 19"):
        make_data(source, validation=7)
    with pytest.raises(ValueError, match=r"latents without the decoded images .* --images, or use l1"):
        make_data(source, images=True)


@pytest.mark.parametrize("images", [False, True])
def test_images_are_read_only_if_they_are_compared(tmp_path, images):
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
    result = validate(sampler, Objective(sampler, lambda a, b: 2 * l1_loss(a, b)), make_data(source), 5, 1)
    assert result.l1 == pytest.approx(expected, rel=1e-6)
    assert result.loss == pytest.approx(2 * expected, rel=1e-6)
    assert (result.iteration, result.rejected) == (5, 1)


@pytest.mark.parametrize(
    ("loss", "other", "better"),
    [(0.5, 1.0, True), (1.0, 1.0, False), (math.nan, 1.0, False), (1.0, math.nan, True)],
)
def test_the_better_validation(loss, other, better):
    assert Validation(1, loss, 9.0).better_than(Validation(0, other, 1.0)) == better
    assert Validation(1, loss, 9.0).better_than(None)


@pytest.fixture
def interruptible():
    """Python ignores SIGINT if its parent does, as shells do for background jobs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_handlers_are_restored(number, interruptible):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.signal is None
        os.kill(os.getpid(), number)
        assert stop.signal == number
    assert signal.getsignal(number) == before


def test_a_second_signal_ends_the_program(interruptible):
    def interrupt_twice():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), StopRequest():
        interrupt_twice()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_leave_signals_alone():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work():
        with StopRequest() as stop:
            seen.append((stop.signal, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, before)]
