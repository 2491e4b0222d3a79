import os
import resource
import signal
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from sample_tools import (
    flip_bit,
    listing,
    make_denoiser,
    make_samples,
    make_until_killed,
    manifest,
    processes,
    shard_bytes,
    tanh_denoiser,
)

import gas_ext.samples.filling as filling
from gas_ext._utils.progress import LogReporter
from gas_ext.samples import TeacherSamples, verify_samples
from gas_ext.solvers import UniPCSolver


@pytest.mark.process
@pytest.mark.parametrize(
    ("end", "left", "evaluations"),
    [
        (1, [], 18),
        (15, ["manifest.json", "shard-00000.safetensors", "shard-00001.safetensors"], 6),
        ("manifest.json", [".manifest.json."], 18),
        (
            "shard-00001.safetensors",
            [".shard-00001.safetensors.", "manifest.json", "shard-00000.safetensors"],
            12,
        ),
    ],
)
def test_killed_anywhere_a_run_resumes_after_the_last_shard(tmp_path, end, left, evaluations):
    expected = make_samples(tmp_path / "expected", range(12), tanh_denoiser())
    folder = tmp_path / "killed"
    folder.mkdir()
    assert processes(make_until_killed, [(folder, range(12), end)]) == [-signal.SIGKILL]
    assert len(listing(folder)) == len(left)
    assert all(name.startswith(start) for name, start in zip(listing(folder), left, strict=True))
    before = {path: path.stat().st_mtime_ns for path in folder.glob("shard*")}
    denoiser = tanh_denoiser()
    samples = make_samples(folder, range(12), denoiser)
    assert denoiser.evaluations == evaluations  # of 18: three shards of two batches of three steps
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert shard_bytes(folder) == shard_bytes(expected.path)
    assert manifest(folder) == manifest(expected.path)
    assert [name for name in listing(folder) if not name.startswith(".manifest")] == listing(expected.path)
    assert torch.equal(samples.batch(range(12)).samples, expected.batch(range(12)).samples)


def test_a_dead_process_blocks_no_other_and_its_shards_can_be_made_later(tmp_path):
    others = [make_samples(tmp_path, rank=rank, world_size=3) for rank in (0, 2)]
    assert [samples.complete for samples in others] == [False, False]
    denoiser = make_denoiser()
    samples = make_samples(tmp_path, denoiser=denoiser)  # by one process
    assert samples.complete
    assert denoiser.evaluations == 2 * 3
    assert TeacherSamples.open(tmp_path, verify=True).complete


def test_manifest_is_that_of_the_first_process(tmp_path):
    make_samples(tmp_path, rank=1, world_size=2, command="first")
    assert make_samples(tmp_path, rank=0, world_size=2, command="second").complete
    assert manifest(tmp_path)["made_with"]["command"] == "first"


def test_settings_that_appear_meanwhile_are_refused(tmp_path):
    def network(x, t, condition):
        if not (tmp_path / "manifest.json").exists():
            make_samples(tmp_path, steps=2, rank=1, world_size=2)
        return torch.tanh(x)

    with pytest.raises(ValueError, match=r"solver\.steps is 2 there and 3 here"):
        make_samples(tmp_path, denoiser=make_denoiser(function=network))
    assert listing(tmp_path) == ["manifest.json", "shard-00001.safetensors"]


def test_of_two_simultaneous_starts_with_other_settings_one_is_refused(tmp_path, monkeypatch):
    write, made = filling.write_manifest, []

    def overtaken(folder, manifest, **options):
        if not made:
            made.append(True)
            make_samples(tmp_path, steps=2)
        write(folder, manifest, **options)

    monkeypatch.setattr(filling, "write_manifest", overtaken)
    with pytest.raises(ValueError, match=r"solver\.steps is 2 there and 3 here"):
        make_samples(tmp_path)
    assert verify_samples(tmp_path) == {}


def test_nothing_is_generated_twice(tmp_path):
    make_samples(tmp_path)
    before = shard_bytes(tmp_path)
    text = (tmp_path / "manifest.json").read_bytes()
    denoiser, lines = make_denoiser(), []
    make_samples(tmp_path, denoiser=denoiser, command="other", reporter=LogReporter(lines.append))
    assert denoiser.evaluations == 0
    assert lines == ["3 of 3 shards exist already."]
    assert shard_bytes(tmp_path) == before
    assert (tmp_path / "manifest.json").read_bytes() == text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seeds": range(10)}, r'seeds is "0-10" there and "0-9" here'),
        ({"seeds": range(12), "batch_size": 3}, r"settings \(batch_size is 2 there and 3 here\)"),
        ({"seeds": [*range(1, 11), 0]}, "seeds is"),
        ({"steps": 4}, r"solver\.steps is 3 there and 4 here"),
        ({"batch_size": 3}, "batch_size is 2 there and 3 here"),
        ({"shard_size": 2}, "shard_size is 4 there and 2 here"),
        ({"threads": 2}, "threads is 1 there and 2 here"),
        ({"denoiser": make_denoiser((3, 2))}, r"sample_shape is \[2, 3\] there and \[3, 2\] here"),
        ({"denoiser": make_denoiser(name="b")}, r'teacher\.name is "denoiser" there and "b" here'),
        ({"images": True}, r"image_shape is null there and \[2, 3\] here"),
        ({"autocast": torch.float16}, 'autocast is null there and "float16" here'),
        ({"seeds": [0], "steps": 9, "batch_size": 8}, "and [0-9]+ more"),
    ],
)
def test_other_settings_are_refused_and_named(tmp_path, changes, reason):
    make_samples(tmp_path, rank=0, world_size=2)
    before = shard_bytes(tmp_path)
    with pytest.raises(ValueError, match=reason) as caught:
        make_samples(tmp_path, **changes)
    assert str(caught.value).replace("...", "").count(". ") == 0
    assert shard_bytes(tmp_path) == before


def test_other_weights_labels_and_prompts_are_refused(tmp_path):
    def labelled(weights_hash=""):
        denoiser = make_denoiser(condition_kind="label", num_classes=5)
        denoiser.weights_hash = weights_hash
        return denoiser

    make_samples(tmp_path, denoiser=labelled(), labels=[0, 1])
    make_samples(tmp_path, denoiser=labelled(), labels=[0, 1, 0, 1])  # the same labels
    with pytest.raises(ValueError, match=r"conditions\.sha256"):
        make_samples(tmp_path, denoiser=labelled(), labels=[1, 0])
    with pytest.raises(ValueError, match=r"teacher\.weights_hash"):
        make_samples(tmp_path, denoiser=labelled("ab"), labels=[0, 1])


def test_a_failed_start_does_not_bind_the_folder(tmp_path):
    def fails(x, t, condition):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        make_samples(tmp_path, denoiser=make_denoiser(function=fails), batch_size=4)
    assert listing(tmp_path) == []
    assert make_samples(tmp_path, batch_size=2).complete


def test_last_bits_of_the_settings_do_not_matter(tmp_path, monkeypatch):
    make_samples(tmp_path)
    describe = UniPCSolver.describe
    monkeypatch.setattr(
        UniPCSolver,
        "describe",
        lambda self: {**describe(self), "timesteps": [t * (1 + 1e-15) for t in self._times.tolist()]},
    )
    assert make_samples(tmp_path).complete


def test_damaged_truncated_and_missing_shards_are_named_and_repaired(tmp_path):
    make_samples(tmp_path / "good", range(15))
    make_samples(tmp_path / "bad", range(15))
    first, second, third = (tmp_path / "bad" / f"shard-0000{n}.safetensors" for n in range(3))
    flip_bit(first)
    second.write_bytes(second.read_bytes()[:-8])
    third.unlink()
    assert verify_samples(tmp_path / "good") == {}
    assert verify_samples(tmp_path / "bad") == {
        first.name: "does not match its SHA-256",
        second.name: "is truncated or has a damaged header",
        third.name: "is missing",
    }
    assert set(verify_samples(tmp_path / "bad", rank=1, world_size=2)) == {second.name}
    denoiser, lines = make_denoiser(), []
    reporter = LogReporter(lines.append)
    make_samples(tmp_path / "bad", range(15), denoiser, repair=True, reporter=reporter)
    assert denoiser.evaluations == 3 * 6  # the fourth shard is intact
    assert f"{first} does not match its SHA-256; it is generated again." in lines
    assert verify_samples(tmp_path / "bad") == {}
    assert shard_bytes(tmp_path / "bad") == shard_bytes(tmp_path / "good")
    assert manifest(tmp_path / "bad") == manifest(tmp_path / "good")


def test_shards_are_checked_before_the_manifest_is_complete(tmp_path):
    make_samples(tmp_path, rank=0, world_size=2)
    flip_bit(tmp_path / "shard-00000.safetensors")
    assert verify_samples(tmp_path) == {
        "shard-00000.safetensors": "does not match its SHA-256",
        "shard-00001.safetensors": "is missing",
    }
    assert make_samples(tmp_path, repair=True).complete
    assert verify_samples(tmp_path) == {}


def test_all_shards_exist_but_the_manifest_is_not_complete(tmp_path, monkeypatch):
    monkeypatch.setattr(filling.SampleFolder, "finish", lambda self: None)
    make_samples(tmp_path)
    monkeypatch.undo()
    assert verify_samples(tmp_path) == {
        "manifest.json": "does not list its shards yet; generate the samples once more"
    }
    with pytest.raises(ValueError, match=r"not complete, it lacks their list in manifest\.json"):
        TeacherSamples.open(tmp_path)
    assert make_samples(tmp_path).complete
    assert verify_samples(tmp_path) == {}


def test_repair_that_gives_other_bits_is_refused(tmp_path):
    make_samples(tmp_path)
    (tmp_path / "shard-00001.safetensors").unlink()
    drifted = make_denoiser(
        function=lambda x, t, condition: torch.tanh(x) * (1.5 - t.to(x.dtype)) * (1 + 2e-7)
    )
    with pytest.raises(ValueError, match=r"other bits .*torch .*device cpu"):
        make_samples(tmp_path, denoiser=drifted)
    assert "shard-00001.safetensors" not in listing(tmp_path)
    (tmp_path / "manifest.json").unlink()
    assert make_samples(tmp_path, denoiser=drifted).complete


def test_shard_of_other_settings_is_neither_used_nor_overwritten(tmp_path):
    make_samples(tmp_path / "a", steps=2)
    (tmp_path / "a" / "manifest.json").unlink()
    before = shard_bytes(tmp_path / "a")
    for repair in (False, True):
        with pytest.raises(ValueError, match="belongs to samples made with other settings"):
            make_samples(tmp_path / "a", repair=repair)
    assert shard_bytes(tmp_path / "a") == before


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("file", "is a file"),
        ("file/sub", "is a file"),
        ("link", "broken link"),
        ("closed/sub", "not writable"),
    ],
)
def test_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path, monkeypatch, name, reason):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    (tmp_path / "closed").mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "closed" and access(path, mode))
    denoiser = make_denoiser()
    with pytest.raises(ValueError, match=reason):
        make_samples(tmp_path / name, denoiser=denoiser)
    assert denoiser.evaluations == 0


def test_complete_folder_that_cannot_be_written_is_fine(tmp_path, monkeypatch):
    make_samples(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert make_samples(tmp_path).complete
    assert verify_samples(tmp_path) == {}


def test_full_disk_is_reported_in_one_sentence_and_leaves_nothing_behind(tmp_path):
    make_samples(tmp_path / "small", range(4))
    large = make_denoiser((3, 64, 64))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # like a full disk
    try:
        with pytest.raises(OSError, match=r"shard-00000\.safetensors \(0 MB\) could not be written.*room"):
            make_samples(tmp_path / "large", range(8), large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert listing(tmp_path / "large") == ["manifest.json"]
    assert make_samples(tmp_path / "large", range(8), large).complete


def test_the_same_work_done_twice_at_once_does_no_harm(tmp_path, monkeypatch):
    replace = os.replace

    def overtaken(source, target):
        replace(source, target)  # another process was faster and removed our partial file
        if Path(target).suffix == ".safetensors":
            raise FileNotFoundError(source)

    monkeypatch.setattr(os, "replace", overtaken)
    assert make_samples(tmp_path).complete
    assert verify_samples(tmp_path) == {}


def _race(folder, rank, barrier):
    torch.set_num_threads(1)
    barrier.wait()
    make_samples(folder, range(24), tanh_denoiser(), rank=rank % 2, world_size=2, steps=1)


@pytest.mark.slow
def test_processes_that_start_and_end_together_agree(tmp_path):
    make_samples(tmp_path / "one", range(24), tanh_denoiser(), steps=1)
    for attempt in range(3):
        barrier = get_context("fork").Barrier(4)
        folder = tmp_path / str(attempt)
        assert processes(_race, [(folder, rank, barrier) for rank in range(4)]) == [0] * 4
        assert shard_bytes(folder) == shard_bytes(tmp_path / "one")
        assert manifest(folder)["shards"] == manifest(tmp_path / "one")["shards"]
        assert listing(folder) == listing(tmp_path / "one")
