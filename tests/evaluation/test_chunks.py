import os

import numpy as np
import torch
from comparison_tools import make_denoiser

from gas_ext.evaluation.chunks import CellFolder, ChunkResult
from gas_ext.evaluation.setup import Setup


def test_mapped_array_joins_the_chunks_and_leaves_no_file(tmp_path):
    setup = Setup(make_denoiser(), list(range(300)), None, batch_size=100)
    cell = CellFolder(tmp_path / "cell")
    parts = []
    for chunk in setup.chunks():
        parts.append(torch.randn(len(chunk.rows), 3))
        cell.write(chunk, ChunkResult({"nfe": 1}, {"features": parts[-1]}))
    before = sorted(tmp_path.rglob("*"))
    with cell.mapped("features", setup.chunks()) as features:
        assert isinstance(features, np.memmap)
        assert np.array_equal(features, torch.cat(parts).numpy())
        assert sorted(tmp_path.rglob("*")) == before
    assert sorted(tmp_path.rglob("*")) == before


def test_chunks_are_whole_batches():
    setup = Setup(make_denoiser(), list(range(1000)), None, batch_size=120)
    assert [chunk.rows for chunk in setup.chunks()] == [range(0, 360), range(360, 720), range(720, 1000)]


def test_chunk_of_other_seeds_is_not_read(tmp_path):
    first, second = Setup(make_denoiser(), list(range(600)), None, batch_size=100).chunks()
    cell = CellFolder(tmp_path / "cell")
    cell.write(first, ChunkResult({"nfe": 1}, {"l1": torch.zeros(300)}))
    assert cell.read(first) is not None
    assert cell.read(second) is None
    cell.chunk_path(first).rename(cell.chunk_path(second))
    assert cell.read(second) is None


def test_partial_files_of_killed_processes_are_removed(tmp_path):
    old, new = tmp_path / ".chunk-0.safetensors.x1", tmp_path / ".chunk-1.safetensors.x2"
    for path in (old, new, tmp_path / "cell.json"):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    CellFolder(tmp_path).clear_leftovers()
    assert {path.name for path in tmp_path.iterdir()} == {
        new.name,
        "cell.json",
    }  # it may still be written
