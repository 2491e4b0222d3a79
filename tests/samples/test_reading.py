import gc
import os
import pickle
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sample_tools import flip_bit, make_denoiser, make_samples, manifest
from torch.utils.data import DataLoader

import gas_ext.samples.reading as reading
from gas_ext._utils.noise import stacked_noise
from gas_ext.samples import SampleSource, TeacherSamples
from gas_ext.samples.manifest import read_manifest, write_manifest

SEEDS = [*range(20, 28), 3, 1, 2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    denoiser = make_denoiser(condition_kind="label", num_classes=10, decode=lambda x: x.flatten(1))
    make_samples(folder, SEEDS, denoiser, images=True)
    return folder


@pytest.fixture(scope="module")
def whole(folder):
    return TeacherSamples.open(folder).batch(range(11))


@pytest.mark.slow
@given(indices=st.lists(st.integers(0, 10), min_size=1, max_size=25), as_tensor=st.booleans())
def test_batches_are_the_requested_rows(folder, whole, indices, as_tensor):
    batch = TeacherSamples.open(folder).batch(torch.tensor(indices) if as_tensor else indices)
    assert torch.equal(batch.noise, stacked_noise([SEEDS[i] for i in indices], (2, 3)))
    for name in ("samples", "condition", "images", "seeds"):
        assert torch.equal(getattr(batch, name), getattr(whole, name)[indices])
    assert batch.seeds.tolist() == [SEEDS[i] for i in indices]
    assert TeacherSamples.open(folder).batch(indices, images=False).images is None


def test_properties_of_a_folder(folder):
    samples: SampleSource = TeacherSamples.open(folder, verify=True)
    assert (len(samples), samples.sample_shape, samples.image_shape) == (11, (2, 3), (6,))
    assert (samples.nfe, samples.complete, samples.missing()) == (3, True, [])
    assert samples.seeds == SEEDS
    assert samples.path == folder


def test_indices_out_of_range_are_refused(folder):
    samples = TeacherSamples.open(folder)
    for indices in ([11], [-1], torch.tensor([0, 99])):
        with pytest.raises(IndexError, match="expected 0 to 10"):
            samples.batch(indices)
    with pytest.raises(ValueError, match="no indices"):
        samples.batch([])
    for indices in ([0.5], torch.zeros(2), torch.tensor([True])):
        with pytest.raises(TypeError):
            samples.batch(indices)


def test_few_shards_are_open_at_a_time(folder, whole, monkeypatch):
    monkeypatch.setattr(reading, "_OPEN_SHARDS", 1)
    samples = TeacherSamples.open(folder)
    for index in (0, 10, 5, 0):
        assert torch.equal(samples.batch([index]).samples[0], whole.samples[index])
    assert samples._shard.cache_info().currsize == 1


def test_files_are_closed_with_the_samples(folder):
    samples = TeacherSamples.open(folder)
    shard = weakref.ref(samples._shard(0))
    gc.disable()
    try:
        del samples
        assert shard() is None
    finally:
        gc.enable()


def test_copies_reopen_the_folder(folder, whole):
    copy = pickle.loads(pickle.dumps(TeacherSamples.open(folder)))
    assert torch.equal(copy.batch([7]).samples[0], whole.samples[7])


def test_workers_of_a_data_loader_read_in_parallel(folder, whole):
    samples = TeacherSamples.open(folder)
    samples.batch([0])  # open here already
    loader = DataLoader(
        range(11),
        batch_size=3,
        collate_fn=lambda indices: samples.batch(indices).samples,
        num_workers=2,
        multiprocessing_context="fork",
    )
    assert torch.equal(torch.cat(list(loader)), whole.samples)


def test_batch_moves_as_a_whole(whole):
    moved = whole.to("meta")
    assert {moved.noise.device.type, moved.samples.device.type, moved.images.device.type} == {"meta"}
    assert moved.condition.device.type == "meta"
    assert moved.seeds is whole.seeds
    assert whole._replace(condition=["a"], images=None).to("meta").condition == ["a"]


def test_teacher_is_compared(tmp_path):
    denoiser = make_denoiser(name="mine")
    denoiser.weights_hash = "12" * 32
    samples = make_samples(tmp_path, denoiser=denoiser)
    samples.check_teacher(denoiser)
    other = make_denoiser(name="mine")
    with pytest.raises(ValueError, match=r"weights 121212121212\), not by 'mine' \(weights unknown"):
        samples.check_teacher(other)
    with pytest.raises(
        ValueError, match=r"shape \[2, 3\] with conditions of type 'none', but 'x' generates \[7\]"
    ):
        samples.check_teacher(make_denoiser((7,), name="x"))


def test_folder_that_is_not_complete_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path, tmp_path / "none", tmp_path / "file"):
        with pytest.raises(ValueError, match=r"manifest\.json is missing"):
            TeacherSamples.open(folder)
    make_samples(tmp_path, rank=0, world_size=2)
    with pytest.raises(ValueError, match="not complete, it lacks 1 of 3 shards"):
        TeacherSamples.open(tmp_path)
    half = make_samples(tmp_path / "b", rank=0, world_size=3)
    assert half.batch([1, 0]).samples.shape == (2, 2, 3)
    with pytest.raises(ValueError, match=r"shard-00002\.safetensors is missing"):
        half.batch([0, 10])


def test_visible_damage_is_found_when_opened(tmp_path):
    made = make_samples(tmp_path)
    path = tmp_path / "shard-00001.safetensors"
    flip_bit(path)
    with pytest.raises(ValueError, match=r"shard-00001\.safetensors does not match"):
        TeacherSamples.open(tmp_path, verify=True)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"shard-00001\.safetensors has \d+ bytes instead of"):
        TeacherSamples.open(tmp_path)
    assert made.missing() == [path.name]
    path.unlink()
    assert made.missing() == [path.name]
    with pytest.raises(ValueError, match=r"shard-00001\.safetensors is missing"):
        TeacherSamples.open(tmp_path)


def test_shard_of_another_folder_is_not_read(tmp_path):
    make_samples(tmp_path / "a")
    make_samples(tmp_path / "b", steps=2)
    path = tmp_path / "a" / "shard-00001.safetensors"
    path.write_bytes((tmp_path / "b" / path.name).read_bytes())
    samples = TeacherSamples.open(tmp_path / "a")  # of the same size
    assert samples.batch([0]).samples.shape == (1, 2, 3)
    with pytest.raises(ValueError, match="made with other settings"):
        samples.batch([5])


def test_torch_that_draws_other_noise_is_refused(tmp_path):
    make_samples(tmp_path)
    other = replace(read_manifest(tmp_path), first_noise=[0.0, 1.0, 2.0, 3.0], made_with={"torch": "9.9"})
    write_manifest(tmp_path, other)
    with pytest.raises(ValueError, match=r"made with torch 9\.9, but torch .* draws other noise"):
        TeacherSamples.open(tmp_path)
    with pytest.raises(ValueError, match="draws other noise"):
        make_samples(tmp_path)


def test_a_damaged_manifest_says_how_to_resume(tmp_path):
    made = make_samples(tmp_path)
    expected, path = manifest(tmp_path), tmp_path / "manifest.json"
    text = path.read_text()
    for damaged in (text.replace("0-10", "0-19"), text[:-40], "\xff"):
        path.write_text(damaged, encoding="latin-1")
        with pytest.raises(ValueError, match=r"is damaged .* delete it"):
            TeacherSamples.open(tmp_path)
    path.write_text('{"format_version": 2}')
    with pytest.raises(ValueError, match="format 1"):
        TeacherSamples.open(tmp_path)
    path.unlink()
    denoiser = make_denoiser()
    make_samples(tmp_path, denoiser=denoiser)
    assert denoiser.evaluations == 0
    assert manifest(tmp_path) == expected
    assert made.complete


READ_ALL = """
import torch
from gas_ext.samples import ShuffledBatches, TeacherSamples

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(name))

samples = TeacherSamples.open({folder!r})
batches = ShuffledBatches(len(samples), 20)
total = samples.batch(next(batches)).samples.sum()
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak starts here
before = status("VmRSS")
for _ in range(len(samples) // 20):
    total += samples.batch(next(batches)).samples.sum()
print(status("VmHWM") - before)
"""


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_reading_everything_in_batches_keeps_memory_small(tmp_path):
    make_samples(tmp_path, range(1000), make_denoiser((3, 128, 128)), steps=1, batch_size=50, shard_size=250)
    megabytes = sum(path.stat().st_size for path in tmp_path.iterdir()) / 2**20
    assert megabytes > 180
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL.format(folder=str(tmp_path))],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert float(done.stdout) < megabytes / 6  # less than one of the shards
