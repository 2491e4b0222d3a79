import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from sample_tools import listing

from gas_ext.samples.shard import Shard, partial_folder, remove_partial_folders, seal, write_shard

TENSORS = {"seeds": torch.arange(3), "samples": torch.linspace(0, 1, 12).reshape(3, 4)}
RECORD = seal({"run": "ab", "number": 7, "nfe": 20, "prompts": ["é", "", "c"]}, TENSORS)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("shard") / "shard-00007.safetensors"
    write_shard(path, RECORD, TENSORS)
    return path


def test_shard_is_a_plain_safetensors_file(path):
    with safe_open(path, framework="pt") as file:
        assert torch.equal(file.get_tensor("samples"), TENSORS["samples"])
    assert path.stat().st_mode & 0o777 == 0o644
    assert listing(path.parent) == [path.name]


def test_rows_come_in_the_order_asked_for(path):
    shard = Shard(path)
    assert len(shard) == 3
    assert shard.names == ["samples", "seeds"]
    assert torch.equal(shard.rows("samples", [2, 0, 2]), TENSORS["samples"][[2, 0, 2]])
    assert shard.record["prompts"] == ["é", "", "c"]
    assert shard.is_intact()


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
def test_a_file_cut_off_anywhere_is_found(path, tmp_path_factory, size):
    content = path.read_bytes()
    damaged = tmp_path_factory.mktemp("damaged") / path.name
    damaged.write_bytes(content[: min(size, len(content) - 1)])
    with pytest.raises(ValueError, match="no shard"):
        Shard(damaged)


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"format_version": 2}, "format 2"), ({"number": "7"}, "'number'"), ({"sha256": None}, "'sha256'")],
)
def test_another_record_is_refused(tmp_path, change, reason):
    write_shard(tmp_path / "a.safetensors", {**RECORD, **change}, TENSORS)
    with pytest.raises(ValueError, match=reason):
        Shard(tmp_path / "a.safetensors")


def test_files_of_others_are_refused(tmp_path):
    save_file(TENSORS, tmp_path / "weights.safetensors")
    for name, reason in (("weights.safetensors", "no shard"), ("none.safetensors", "is missing")):
        with pytest.raises(ValueError, match=reason):
            Shard(tmp_path / name)


def test_partial_folders_of_one_file_are_removed(tmp_path):
    first, second = tmp_path / "shard-00001.safetensors", tmp_path / "shard-00002.safetensors"
    with partial_folder(first) as mine, partial_folder(second) as other:
        (mine / "x").write_text("x")
        remove_partial_folders(first)
        assert not mine.exists()
        assert other.exists()
    assert listing(tmp_path) == []
