"""The floor's kernel reads and writes all of its streams: skipping bytes would make the floor too low."""

import pytest
import torch
from benchmark_modules import floor, measuring


@pytest.fixture(scope="module")
def streams(tmp_path_factory):
    built = floor.build(tmp_path_factory.mktemp("streams"))
    if built is None:
        pytest.skip("no C++ compiler that can build the floor")
    return built


def words(count, lines, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(-(2**62), 2**62, (8 * lines,), generator=generator) for _ in range(count)]


def combined(tensors):
    result = torch.zeros_like(tensors[0])
    for tensor in tensors:
        result = result.bitwise_xor(tensor)
    return result


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("past_cache", [False, True])
@pytest.mark.parametrize("lines", [1, 4, 103])
def test_one_pass_writes_the_combination_of_all_reads(streams, lines, past_cache, threads):
    reads, writes = words(5, lines, 0), words(2, lines, 1)
    streams.sweep([(reads, writes)], past_cache=past_cache, threads=threads)()
    for written in writes:
        assert torch.equal(written, combined(reads))


@pytest.mark.slow
def test_passes_cover_all_streams(streams):
    reads, writes = words(7, 10, 0), words(3, 10, 1)
    streams.sweep([(reads, writes)], passes=3)()
    for written, part in zip(writes, (reads[:2], reads[2:4], reads[4:]), strict=True):
        assert torch.equal(written, combined(part))


def test_groups_are_visited_in_turn(streams):
    groups = [(words(2, 4, seed), words(1, 4, 9)) for seed in range(3)]
    before = groups[2][1][0].clone()
    sweep = streams.sweep(groups, repeats=2)
    sweep()
    assert sweep.repeats == 2
    for reads, (written,) in groups[:2]:
        assert torch.equal(written, combined(reads))
    assert torch.equal(groups[2][1][0], before)


def test_streams_must_be_whole_aligned_lines(streams):
    with pytest.raises(ValueError, match="64 bytes"):
        streams.sweep([([torch.zeros(15)], [torch.zeros(15)])])
    with pytest.raises(ValueError, match="64 bytes"):
        streams.sweep([([torch.zeros(32)[1:17]], [torch.zeros(16)])])


def test_the_floor_counts_its_repeats_in_whole_rounds(streams):
    found = streams.floor(torch.zeros(64), reads=3, writes=2, groups=7)
    assert found.repeats % 7 == 0
    assert 0 < measuring.measure(found, 0.0).median < 1.0


def test_torch_copies_as_many_bytes(streams):
    """Five streams: two are copied to two others, and half of the fifth to its other half."""
    tensors = [torch.full((16,), float(k)) for k in range(5)]
    tensors[4][:8] = 7.0
    floor._copies([tensors])()
    assert [tensor[0].item() for tensor in tensors[:4]] == [0.0, 1.0, 0.0, 1.0]
    assert tensors[4].tolist() == [7.0] * 16


def test_no_compiler_no_floor(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert floor.build(tmp_path) is None
