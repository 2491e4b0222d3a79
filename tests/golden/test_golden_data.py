"""The golden data is complete and comes from the repository alone."""

import lzma
from pathlib import Path

from golden_data import GOLDEN, STORED, index

ROOT = Path(__file__).resolve().parents[2]


def test_every_file_of_the_index_is_stored():
    stored = {str(path.relative_to(STORED).with_suffix("")) for path in STORED.rglob("*.xz")}
    assert set(index()["files"]) <= stored
    assert len(index()["files"]) >= 50


def test_it_is_unpacked_within_the_repository():
    assert GOLDEN.is_relative_to(ROOT)
    for name in ("index.json", "gs/cfg_s4.npz", "edm/ddpmpp_vp.scrubbed_era2022.pkl"):
        assert (GOLDEN / name).read_bytes() == lzma.decompress((STORED / f"{name}.xz").read_bytes())
