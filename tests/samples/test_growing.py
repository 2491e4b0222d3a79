"""Folders that get more seeds: existing samples stay, and the others are added."""

import signal

import pytest
import torch
from sample_tools import (
    listing,
    make_denoiser,
    make_samples,
    make_until_killed,
    manifest,
    processes,
    shard_bytes,
    tanh_denoiser,
)

from gas_ext._utils.progress import LogReporter
from gas_ext.samples import TeacherSamples, verify_samples


def same_samples(a, b):
    whole = range(len(a))
    return len(a) == len(b) and all(
        torch.equal(getattr(a.batch(whole), name), getattr(b.batch(whole), name))
        for name in ("noise", "samples", "seeds")
    )


@pytest.mark.parametrize(("before", "after"), [(11, 20), (8, 20), (3, 4), (1, 11)])
def test_a_folder_grows(tmp_path, before, after):
    make_samples(tmp_path / "grown", range(before))
    shards = shard_bytes(tmp_path / "grown")
    denoiser, lines = make_denoiser(), []
    grown = make_samples(tmp_path / "grown", range(after), denoiser, reporter=LogReporter(lines.append))
    assert grown.complete
    assert f"{tmp_path / 'grown'} grows from {before} to {after} samples." in lines
    assert denoiser.evaluations == 3 * -(-(after - before) // 2)  # two samples per batch
    assert shards.items() <= shard_bytes(tmp_path / "grown").items()
    assert same_samples(grown, make_samples(tmp_path / "at once", range(after)))
    opened = TeacherSamples.open(tmp_path / "grown", verify=True)
    assert (opened.nfe, opened.seeds, opened.missing()) == (3, list(range(after)), [])
    assert torch.equal(opened.batch([before, 0, before - 1]).seeds, torch.tensor([before, 0, before - 1]))


def test_a_folder_grows_again_and_again(tmp_path):
    for count in (5, 11, 12, 30):
        samples = make_samples(tmp_path, range(count))
        assert (len(samples), samples.complete) == (count, True)
    assert same_samples(samples, make_samples(tmp_path / "at once", range(30)))
    denoiser = make_denoiser()
    assert len(make_samples(tmp_path, range(30), denoiser)) == 30
    assert denoiser.evaluations == 0


def test_the_samples_before_the_growth_can_still_be_requested(tmp_path):
    make_samples(tmp_path)
    make_samples(tmp_path, range(20))
    before = manifest(tmp_path)
    assert len(make_samples(tmp_path)) == 20
    assert manifest(tmp_path) == before
    with pytest.raises(ValueError, match=r'seeds is "0-19" there and "0-11" here'):
        make_samples(tmp_path, range(12))


def test_settings_are_those_of_the_first_sufficient_stage(tmp_path):
    samples = make_samples(tmp_path)
    first = samples.settings
    assert samples.settings_of(3) == samples.settings_of(11) == first
    grown = make_samples(tmp_path, range(20))
    assert grown.settings_of(11) == first
    assert grown.settings_of(12) == grown.settings_of(20) == grown.settings != first


@pytest.mark.slow
def test_shard_size_of_a_folder_is_the_default_when_it_grows(tmp_path):
    make_samples(tmp_path)
    samples = make_samples(tmp_path, range(500), shard_size=None)
    assert samples.settings["shard_size"] == 4
    with pytest.raises(ValueError, match=r"other settings \(shard_size is 4 there and 8 here\)"):
        make_samples(tmp_path, range(600), shard_size=8)


def test_seeds_that_do_not_extend_the_folder_are_refused(tmp_path):
    make_samples(tmp_path)
    for seeds in (range(1, 20), [*range(10), 30, 31]):
        with pytest.raises(ValueError, match=r'seeds is "0-10" there'):
            make_samples(tmp_path, seeds)
    assert len(make_samples(tmp_path, [*range(11), 40, 3])) == 13


def test_the_first_conditions_must_be_the_same(tmp_path):
    def make(count, labels):
        denoiser = make_denoiser(condition_kind="label", num_classes=5)
        return make_samples(tmp_path, range(count), denoiser, labels=labels)

    make(5, [0, 1, 2])
    with pytest.raises(ValueError, match=r"conditions\.sha256"):
        make(9, [0, 1])
    labels = [0, 1, 2, 0, 1, 4, 4, 4, 4]
    assert make(9, labels).batch(range(9)).condition.tolist() == labels


def test_unfinished_samples_are_completed_first(tmp_path):
    make_samples(tmp_path, rank=1, world_size=2)
    assert not make_samples(tmp_path, range(20), rank=1, world_size=2).complete  # others must continue
    assert manifest(tmp_path)["settings"]["samples"] == 11
    samples = make_samples(tmp_path, range(20))
    assert (samples.complete, len(samples)) == (True, 20)
    assert verify_samples(tmp_path) == {}


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_several_processes(tmp_path, world_size):
    for folder in ("one", "many"):
        make_samples(tmp_path / folder)
    make_samples(tmp_path / "one", range(30))
    for rank in reversed(range(world_size)):
        samples = make_samples(tmp_path / "many", range(30), rank=rank, world_size=world_size)
        assert samples.complete == (rank == 0)
        assert len(TeacherSamples.open(tmp_path / "many")) == (30 if rank == 0 else 11)
    assert shard_bytes(tmp_path / "many") == shard_bytes(tmp_path / "one")
    assert manifest(tmp_path / "many") == manifest(tmp_path / "one")


@pytest.mark.process
@pytest.mark.parametrize(
    ("end", "evaluations"),
    [
        (1, 15),  # of 5 batches of 3 steps
        (8, 9),
        ("shard-00003.safetensors", 15),
        ("shard-00004.safetensors", 9),
        ("manifest.json", 0),
    ],
)
def test_killed_anywhere_a_folder_stays_intact_and_resumes(tmp_path, end, evaluations):
    expected = make_samples(tmp_path / "expected", range(20), tanh_denoiser())
    folder = tmp_path / "killed"
    first = make_samples(folder, denoiser=tanh_denoiser())
    before = shard_bytes(folder)
    assert processes(make_until_killed, [(folder, range(20), end)]) == [-signal.SIGKILL]
    assert same_samples(TeacherSamples.open(folder, verify=True), first)
    denoiser = tanh_denoiser()
    grown = make_samples(folder, range(20), denoiser)
    assert denoiser.evaluations == evaluations
    assert before.items() <= shard_bytes(folder).items()
    assert same_samples(grown, expected)
    assert [name for name in listing(folder) if not name.startswith(".manifest")] == [
        "manifest.json",
        *(f"shard-0000{n}.safetensors" for n in range(6)),
    ]


def test_leftovers_of_another_attempt_are_generated_again(tmp_path):
    make_samples(tmp_path)
    make_samples(tmp_path, range(30), rank=0, world_size=2)
    lines = []
    make_samples(tmp_path, range(20), reporter=LogReporter(lines.append))
    left = tmp_path / "shard-00004.safetensors"
    assert f"{left} remains from an attempt to generate other samples; it is generated again." in lines
    assert verify_samples(tmp_path) == {}
    assert same_samples(TeacherSamples.open(tmp_path), make_samples(tmp_path / "at once", range(20)))


def test_a_foreign_shard_among_the_listed_is_not_overwritten(tmp_path):
    make_samples(tmp_path / "a")
    make_samples(tmp_path / "b", steps=2)
    path = tmp_path / "a" / "shard-00001.safetensors"
    path.write_bytes((tmp_path / "b" / path.name).read_bytes())
    for count in (11, 20):
        with pytest.raises(ValueError, match="belongs to samples made with other settings"):
            make_samples(tmp_path / "a", range(count))


def test_damage_is_repaired_while_growing(tmp_path):
    make_samples(tmp_path)
    before = shard_bytes(tmp_path)
    (tmp_path / "shard-00001.safetensors").unlink()
    make_samples(tmp_path, range(20))
    assert before.items() <= shard_bytes(tmp_path).items()
    assert verify_samples(tmp_path) == {}


def test_a_lost_manifest_is_restored_stage_by_stage(tmp_path):
    for count in (11, 20):
        make_samples(tmp_path, range(count))
    before = manifest(tmp_path)
    (tmp_path / "manifest.json").unlink()
    denoiser = make_denoiser()
    for count in (11, 20):
        make_samples(tmp_path, range(count), denoiser)
    assert denoiser.evaluations == 0
    assert manifest(tmp_path) == before


def test_a_folder_that_grows_differently_meanwhile_is_refused(tmp_path):
    make_samples(tmp_path)

    def network(x, t, condition):
        if not (tmp_path / "shard-00003.safetensors").exists():
            make_samples(tmp_path, range(13), tanh_denoiser())
        return torch.tanh(x)

    with pytest.raises(ValueError, match=r'seeds is "0-12" there and "0-19" here'):
        make_samples(tmp_path, range(20), make_denoiser(function=network))
    assert verify_samples(tmp_path) == {}


def _race(folder, rank):
    torch.set_num_threads(1)
    make_samples(folder, range(20), tanh_denoiser(), rank=rank % 2, world_size=2, steps=1)


@pytest.mark.slow
def test_processes_that_start_together_agree(tmp_path):
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        make_samples(folder, range(17), tanh_denoiser(), steps=1)  # one shard is missing
        assert processes(_race, [(folder, rank) for rank in range(4)]) == [0] * 4
        assert len(TeacherSamples.open(folder, verify=True)) == 20
        assert not any(name.startswith(".") for name in listing(folder))
