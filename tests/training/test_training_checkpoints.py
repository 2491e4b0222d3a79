import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gas_ext._utils.sealed_files import checksum, write_sealed
from gas_ext.training.checkpoints import (
    checkpoint_paths,
    load_checkpoint,
    newest_checkpoint,
    remove_newer,
    save_checkpoint,
)


def state(iterations=1, **changes):
    """Everything that a run resumes from, with tensors of several kinds."""
    times = {"times": torch.tensor([0.5, 1.0], dtype=torch.float64), "none": torch.zeros(0)}
    return {
        "solver": times,
        "average": times,
        "best": {str(number): value for number, value in enumerate(times.values())},
        "optimizer": {
            "0": {"step": torch.tensor(3.0), "half": torch.ones(2, dtype=torch.bfloat16)},
            "1": {"step": 4},
        },
        "adversary": None,
        "losses": torch.full((iterations,), float("nan"), dtype=torch.float64),
        "rejected": 0,
        "in_a_row": 0,
        "validation": {"best": {"iteration": 0, "loss": 0.1 + 0.2, "l1": None}},
        "settings": {"training.loss": "l1", "training.clip": None, "student.steps": [4, 6]},
        **changes,
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    return a == b


def test_a_state_is_read_bit_for_bit(tmp_path):
    path = save_checkpoint(tmp_path / "checkpoints", 12, state())
    checkpoint = load_checkpoint(path)
    assert checkpoint.iteration == 12
    assert same(checkpoint.state, state())
    content = path.read_bytes()
    assert content[8:9] == b"{"  # safetensors, not a pickle: length of the header, header
    assert newest_checkpoint(tmp_path / "nowhere") is None


def test_tensors_that_share_memory(tmp_path):
    weight = torch.ones(3)
    loaded = load_checkpoint(save_checkpoint(tmp_path, 1, {"a": weight, "b": weight, "c": weight[:2]}))
    assert same(loaded.state, {"a": torch.ones(3), "b": torch.ones(3), "c": torch.ones(2)})


def test_the_newest_two_are_stored(tmp_path):
    for iteration in (5, 9, 10, 100):
        save_checkpoint(tmp_path, iteration, state(iteration))
    assert [load_checkpoint(path).iteration for path in checkpoint_paths(tmp_path)] == [10, 100]
    assert newest_checkpoint(tmp_path).iteration == 100
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("position", range(0, 1000, 61))
def test_every_changed_bit_is_found(tmp_path, position):
    path = save_checkpoint(tmp_path, 1, state())
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged|no checkpoint|format"):
        load_checkpoint(path)


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_a_truncated_file(tmp_path, size):
    path = save_checkpoint(tmp_path, 1, state())
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match="is not a safetensors file, or is damaged"):
        load_checkpoint(path)


def test_another_format_is_refused(tmp_path):
    path = save_checkpoint(tmp_path, 1, {"a": torch.ones(1)})
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()["gas_ext_checkpoint"])
    record["format_version"] = 99
    record["sha256"] = checksum(record, tensors)
    save_file(tensors, path, {"gas_ext_checkpoint": json.dumps(record)})
    with pytest.raises(ValueError, match=r"format 99, but this gas_ext reads format 1"):
        load_checkpoint(path)


def test_newer_and_half_written_ones_are_removed(tmp_path):
    for iteration in (1, 2):
        save_checkpoint(tmp_path, iteration, state())
    (tmp_path / ".iteration-00000003.safetensors.x1y2").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    remove_newer(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iteration-00000001.safetensors", "notes.txt"]
    remove_newer(tmp_path, -1)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "change",
    [
        None,
        {"solver": 3},
        {"average": {"times": torch.zeros(5)}},
        {"losses": torch.zeros(7)},
        {"rejected": "x"},
        {"validation": {"best": {"iteration": 1}}},
        {"settings": None},
    ],
)
def test_a_damaged_or_crafted_checkpoint_is_reported_and_the_one_before_is_used(tmp_path, change):
    save_checkpoint(tmp_path, 1, state(1))
    newest = save_checkpoint(tmp_path, 2, state(2, **(change or {})))
    if change is None:
        newest.write_bytes(b"")
    reported = []
    assert newest_checkpoint(tmp_path, reported.append).iteration == 1
    (line,) = reported
    assert str(newest) in line
    assert "iteration-00000001" in line


def test_a_tensor_outside_the_state_is_refused(tmp_path):
    path = tmp_path / "iteration-00000001.safetensors"
    record = {"format_version": 1, "iteration": 1, "state": {"a": 3}}
    write_sealed(path, "gas_ext_checkpoint", record, {"a/b": torch.zeros(1)})
    with pytest.raises(ValueError, match="its tensor 'a/b' belongs to no part of the state"):
        load_checkpoint(path)
