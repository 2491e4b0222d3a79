"""Manifests, shards and data sets whose content contradicts their description."""

import json
import pickle
import time

import pytest
import torch
from safetensors.torch import load_file
from sample_tools import make_samples

from gas_ext.samples import ReferenceDataset, TeacherSamples, verify_samples
from gas_ext.samples.manifest import _hash
from gas_ext.samples.shard import Shard, seal, write_shard

SHARD = "shard-00001.safetensors"


@pytest.fixture
def folder(tmp_path):
    make_samples(tmp_path, range(11))
    return tmp_path


def rewrite_manifest(folder, change):
    path = folder / "manifest.json"
    record = json.loads(path.read_text())
    record.pop("sha256")
    change(record)
    path.write_text(json.dumps({**record, "sha256": _hash(record)}))


def settings(**values):
    return lambda record: record["settings"].update(values)


def without(*names):
    def change(record):
        for name in names[:-1]:
            record = record[name]
        del record[names[-1]]

    return change


def rename(record):
    record["shards"]["../../x"] = record["shards"].pop(SHARD)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (settings(samples=10**9, shard_size=1, seeds="0-999999999"), "'settings'.samples is 1000000000"),
        (settings(samples=10**7, shard_size=1, seeds="0-9999999"), "more than 100000 shards"),
        (settings(samples=12), "11 seeds for 12 samples"),
        (settings(seeds="0-x"), "Cannot read seeds"),
        (settings(seeds=3), "'settings'.seeds is 3, but must be a str"),
        (settings(shard_size=0), "shard_size is 0, but must be an int of at least 1"),
        (settings(sample_shape=[2**28]), "too small for its samples"),
        (settings(sample_shape="x"), "sample_shape is 'x', but must be a list"),
        (settings(teacher=None), "teacher is None, but must be a dict"),
        (without("settings", "sample_shape"), "sample_shape is missing"),
        (without("first_noise"), "'first_noise' is missing"),
        (without("shards", SHARD, "bytes"), "bytes is missing"),
        (lambda record: record.update(grown_from=[{}]), "is missing"),
        (lambda record: record.update(nfe="x"), "'nfe' is 'x'"),
        (rename, r"lists '\.\./\.\./x', which is not one of its shards"),
    ],
)
def test_manifests_that_are_sealed_but_impossible(folder, change, message):
    rewrite_manifest(folder, change)
    start = time.monotonic()
    for read in (TeacherSamples.open, verify_samples):
        with pytest.raises(ValueError, match=message) as caught:
            read(folder)
        assert "manifest.json is damaged" in str(caught.value)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("samples", lambda t: t.to(torch.int64), "its samples are torch.int64, not torch.float32"),
        ("samples", lambda t: t.to(torch.float16), "its samples are torch.float16, not torch.float32"),
        ("samples", lambda t: t * float("nan"), "holds samples that are not finite"),
        ("samples", lambda t: t[:2], r"its samples are \(2, 2, 3\) instead of \(4, 2, 3\)"),
        ("samples", lambda t: None, r"its samples are None instead of \(4, 2, 3\)"),
        ("seeds", lambda t: t[:, None], r"its seeds are \(4, 1\) instead of \(4,\)"),
        ("images", lambda t: torch.zeros(4, 1), r"its images are \(4, 1\) instead of None"),
        ("extra", lambda t: torch.zeros(3), "its 'extra' are not 4, one per sample"),
    ],
)
def test_shards_that_are_sealed_but_hold_other_tensors(folder, name, change, message):
    path = folder / SHARD
    record = {
        key: value for key, value in Shard(path).record.items() if key not in ("sha256", "format_version")
    }
    tensors = load_file(path)
    changed = change(tensors.pop(name, None))
    if changed is not None:
        tensors[name] = changed.contiguous()
    sealed = seal(record, tensors)
    write_shard(path, sealed, tensors)
    entry = {"samples": 4, "bytes": path.stat().st_size, "sha256": sealed["sha256"]}
    rewrite_manifest(folder, lambda record: record["shards"].update({SHARD: entry}))
    with pytest.raises(ValueError, match=message) as caught:
        TeacherSamples.open(folder).batch([5])
    assert str(folder) in str(caught.value)


def test_a_shard_that_is_truncated_while_it_is_open(folder):
    samples = TeacherSamples.open(folder)
    samples.batch([4])
    with open(folder / SHARD, "r+b") as file:
        file.truncate(100)
    with pytest.raises(ValueError, match=f"{SHARD} was truncated while it was open"):
        samples.batch([4])


def dataset(path, noise, **values):
    content = {"noise": noise, "latents": [None], "images": noise, "condition": [None], **values}
    path.write_bytes(pickle.dumps(content, 4))
    return path


def test_data_sets_of_empty_noise_are_refused(tmp_path):
    path = dataset(tmp_path / "dataset.pkl", torch.empty(0, 2**27))
    with pytest.raises(ValueError, match=r"its noise are empty, of shape \(0, 134217728\)"):
        ReferenceDataset(path)


def test_data_sets_of_other_types_and_values_are_refused(tmp_path):
    path = dataset(tmp_path / "dataset.pkl", torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"its noise are torch\.int64, not torch\.float32"):
        ReferenceDataset(path)
    path = dataset(path, torch.zeros(2, 3), images=torch.full((2, 3), float("nan")))
    with pytest.raises(ValueError, match="samples that are not finite"):
        ReferenceDataset(path).batch([0])


def test_a_data_set_that_is_truncated_while_it_is_open(tmp_path):
    path = dataset(tmp_path / "dataset.pkl", torch.zeros(2000, 30))
    opened = ReferenceDataset(path)
    with open(path, "r+b") as file:
        file.truncate(100)
    with pytest.raises(ValueError, match="was truncated while it was open"):
        opened.batch([1999])
