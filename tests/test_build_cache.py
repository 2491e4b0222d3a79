"""The cache of what tests compile or unpack."""

from __future__ import annotations

from pathlib import Path

import build_cache
import pytest


def write(text: str, made: list[str]):
    def make(folder: Path) -> Path:
        made.append(text)
        (folder / "program").write_text(text)
        return folder / "program"

    return make


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(build_cache, "CACHE", tmp_path / "build" / "tests")
    return build_cache.CACHE


def test_each_digest_is_compiled_once():
    made: list[str] = []
    for digest in ("one", "one", "two", "one"):
        assert build_cache.cached("tool", digest, write(digest, made)).read_text() == digest
    assert made == ["one", "two"]


def test_a_failed_compilation_leaves_nothing(empty_cache):
    def fail(folder: Path) -> Path:
        build_cache.run_all([["sh", "-c", f"touch {folder}/part; echo why >&2; exit 3"]])
        raise AssertionError

    with pytest.raises(RuntimeError, match="why"):
        build_cache.cached("tool", "one", fail)
    assert not [path for path in empty_cache.rglob("*") if path.is_file()]


def test_the_hash_depends_on_texts_names_and_contents(tmp_path):
    files = [tmp_path / "a.h", tmp_path / "b.h"]
    for path in files:
        path.write_text("x")
    hashes = [build_cache.hash_of(["1"], files), build_cache.hash_of(["2"], files)]
    assert build_cache.hash_of(["1"], files[::-1]) == hashes[0]
    files[0].write_text("y")
    hashes.append(build_cache.hash_of(["1"], files))
    hashes.append(build_cache.hash_of(["1"], [files[0], files[1].rename(tmp_path / "c.h")]))
    assert len(set(hashes)) == 4
