import json

import pytest
import torch
from safetensors import safe_open

from gas_ext._utils.sealed_files import write_sealed
from gas_ext.training.checkpoints import (
    check_state,
    checkpoint_paths,
    load_checkpoint,
    newest_checkpoint,
    remove_newer,
    save_checkpoint,
)


def state(value=0.0):
    return {
        "solver": {"times": torch.tensor([value, 1.0], dtype=torch.float64), "none": torch.zeros(0)},
        "optimizer": {"0": {"step": torch.tensor(3.0), "second": torch.eye(2)}, "1": {"step": 4}},
        "adversary": None,
        "losses": torch.tensor([0.1, float("nan")], dtype=torch.float64),
        "settings": {"training.loss": "l1", "training.clip": None, "student.steps": [4, 6]},
        "half": torch.ones(3, dtype=torch.bfloat16),
        "number": 0.1 + 0.2,
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return (
            a.dtype == b.dtype
            and a.shape == b.shape
            and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
        )
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    return a == b


def test_what_is_saved_is_read_bit_for_bit(tmp_path):
    path = save_checkpoint(tmp_path / "checkpoints", 12, state())
    found = load_checkpoint(path)
    assert found.iteration == 12
    assert same(found.state, state())


def test_tensors_that_share_memory(tmp_path):
    weight = torch.ones(3)
    found = load_checkpoint(save_checkpoint(tmp_path, 1, {"a": weight, "b": weight, "c": weight[:2]}))
    assert same(found.state, {"a": torch.ones(3), "b": torch.ones(3), "c": torch.ones(2)})


def test_the_newest_two_are_kept(tmp_path):
    for iteration in (5, 9, 10, 100):
        save_checkpoint(tmp_path, iteration, state())
    assert [load_checkpoint(path).iteration for path in checkpoint_paths(tmp_path)] == [10, 100]
    assert newest_checkpoint(tmp_path).iteration == 100
    assert len(list(tmp_path.iterdir())) == 2


def test_no_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize("place", range(0, 1000, 61))
def test_every_changed_bit_is_found(tmp_path, place):
    path = save_checkpoint(tmp_path, 1, state())
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged|no checkpoint|format"):
        load_checkpoint(path)


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_a_file_that_is_cut_off(tmp_path, size):
    path = save_checkpoint(tmp_path, 1, state())
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match="is not a safetensors file, or is damaged"):
        load_checkpoint(path)


def test_the_one_before_is_taken_and_that_is_told(tmp_path):
    save_checkpoint(tmp_path, 1, state(1.0))
    newest = save_checkpoint(tmp_path, 2, state(2.0))
    newest.write_bytes(b"")
    told = []
    found = newest_checkpoint(tmp_path, told.append)
    assert found.iteration == 1
    assert len(told) == 1
    assert str(newest) in told[0]
    assert "iteration-00000001" in told[0]


def test_another_format_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    from gas_ext._utils.sealed_files import checksum

    path = save_checkpoint(tmp_path, 1, {"a": torch.ones(1)})
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()["gas_ext_checkpoint"])
    record["format_version"] = 99
    record["sha256"] = checksum(record, tensors)
    save_file(tensors, path, {"gas_ext_checkpoint": json.dumps(record)})
    with pytest.raises(ValueError, match=r"format 99, but this gas_ext reads format 1"):
        load_checkpoint(path)


def test_newer_ones_and_what_was_half_written_are_removed(tmp_path):
    for iteration in (1, 2):
        save_checkpoint(tmp_path, iteration, state())
    (tmp_path / ".iteration-00000003.safetensors.x1y2").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    remove_newer(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iteration-00000001.safetensors", "notes.txt"]
    remove_newer(tmp_path, -1)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_nothing_in_a_checkpoint_is_a_pickle(tmp_path):
    content = save_checkpoint(tmp_path, 1, state()).read_bytes()
    assert content[8:9] == b"{"  # safetensors: length of the header, header
    assert not content.startswith((b"PK", b"\x80"))


@pytest.mark.parametrize(
    "change",
    [
        {"solver": 3},
        {"average": {"times": torch.zeros(5)}},
        {"losses": torch.zeros(7)},
        {"rejected": "x"},
        {"validation": {"best": {"iteration": 1}}},
        {"settings": None},
    ],
)
def test_a_crafted_checkpoint_gives_way_to_the_one_before(tmp_path, change):
    times = {"times": torch.zeros(3, dtype=torch.float64)}
    whole = {"solver": times, "average": times, "best": {"0": times["times"]}, "optimizer": {}}
    whole |= {"rejected": 0, "in_a_row": 0, "adversary": None, "validation": {}, "settings": {}}
    save_checkpoint(tmp_path, 1, {**whole, "losses": torch.zeros(1)})
    newest = save_checkpoint(tmp_path, 2, {**whole, "losses": torch.zeros(2), **change})
    told = []
    assert newest_checkpoint(tmp_path, told.append, check_state).iteration == 1
    assert str(newest) in told[0]


def test_a_tensor_without_a_place_is_refused(tmp_path):
    path = tmp_path / "iteration-00000001.safetensors"
    record = {"format_version": 1, "iteration": 1, "state": {"a": 3}}
    write_sealed(path, "gas_ext_checkpoint", record, {"a/b": torch.zeros(1)})
    with pytest.raises(ValueError, match="no place for its tensor 'a/b'"):
        load_checkpoint(path)
