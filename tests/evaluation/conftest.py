"""clean-fid as an oracle of several tests."""

import pytest
import scipy.linalg

_SQRTM = scipy.linalg.sqrtm


@pytest.fixture
def clean_fid(monkeypatch):
    """clean-fid with SciPy 1.18, whose `sqrtm` has no `disp` and returns only the root."""
    fid = pytest.importorskip("cleanfid.fid")
    monkeypatch.setattr(fid.linalg, "sqrtm", lambda matrix, disp=True: (_SQRTM(matrix), 0.0))
    return fid
