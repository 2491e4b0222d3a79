import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sample_tools import listing

from gas_ext._utils.files import umask
from gas_ext.samples.shard import Shard, seal, write_shard

TENSORS = {"seeds": torch.arange(3), "samples": torch.linspace(0, 1, 12).reshape(3, 4)}
RECORD = seal({"run": "ab", "number": 7, "nfe": 20, "prompts": ["é", "", "c"]}, TENSORS)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("shard") / "shard-00007.safetensors"
    write_shard(path, RECORD, TENSORS)
    return path


def test_shard_is_a_plain_safetensors_file(path):
    assert torch.equal(load_file(path)["samples"], TENSORS["samples"])
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()
    assert listing(path.parent) == [path.name]


def test_rows_are_read_one_by_one(path):
    shard = Shard(path)
    assert shard.names == {"samples", "seeds"}
    assert [shard.row("seeds", row).item() for row in (2, 0, 2)] == [2, 0, 2]
    assert torch.equal(shard.row("samples", 1), TENSORS["samples"][1])
    assert shard.record["prompts"] == ["é", "", "c"]
    assert shard.is_intact()


ODD = (torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64)


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int8, torch.int32, torch.bfloat16, torch.float64, *ODD]
)
def test_tensors_of_any_type_are_read_as_they_were_written(tmp_path, dtype):
    values = (
        torch.arange(16, dtype=torch.uint8).view(dtype) if dtype != torch.bool else torch.arange(16) % 3 == 0
    )
    tensors = {"seeds": torch.arange(2), "conditions": values.reshape(2, -1)}
    path = tmp_path / "shard-00007.safetensors"
    write_shard(path, seal(RECORD, tensors), tensors)
    shard, expected = Shard(path), load_file(path)["conditions"]
    assert shard.is_intact()
    for row in range(2):
        assert shard.row("conditions", row).dtype == dtype
        assert torch.equal(shard.row("conditions", row).view(torch.uint8), expected[row].view(torch.uint8))


@settings(max_examples=300)
@given(data=st.data())
def test_any_flipped_bit_is_found(path, tmp_path_factory, data):
    content = bytearray(path.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    damaged = tmp_path_factory.mktemp("damaged") / path.name
    damaged.write_bytes(content)
    try:
        assert not Shard(damaged).is_intact()
    except ValueError as error:
        assert str(damaged) in str(error)  # noqa: PT017


@given(st.integers(0, 600))
def test_a_truncated_file_is_found(path, tmp_path_factory, size):
    content = path.read_bytes()
    damaged = tmp_path_factory.mktemp("damaged") / path.name
    damaged.write_bytes(content[: min(size, len(content) - 1)])
    with pytest.raises(ValueError, match="is not a safetensors file, or is damaged"):
        Shard(damaged)


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"format_version": 2}, "format 2"), ({"number": "7"}, "'number'"), ({"sha256": None}, "'sha256'")],
)
def test_another_record_is_refused(tmp_path, change, reason):
    write_shard(tmp_path / "a.safetensors", {**RECORD, **change}, TENSORS)
    with pytest.raises(ValueError, match=reason):
        Shard(tmp_path / "a.safetensors")


def test_other_files_are_refused(tmp_path):
    save_file(TENSORS, tmp_path / "weights.safetensors")
    for name, reason in (
        ("weights.safetensors", "does not hold a shard"),
        ("none.safetensors", "No such file"),
    ):
        with pytest.raises(ValueError, match=reason):
            Shard(tmp_path / name)


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    first, second = tmp_path / "shard-00001.safetensors", tmp_path / "shard-00002.safetensors"
    for leftover in (f".{first.name}.a1b2", f".{first.name}.c3d4", f".{second.name}.e5f6"):
        (tmp_path / leftover).write_text("half")
    write_shard(first, RECORD, TENSORS)
    assert listing(tmp_path) == [f".{second.name}.e5f6", first.name]
