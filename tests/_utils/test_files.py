import errno
import os

import numpy as np
import pytest
import torch

from gas_ext._utils.files import partial_file, write_file
from gas_ext._utils.noise import save_png


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*solver\.safetensors'"):
        write_file(tmp_path / "solver.safetensors", b"x")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_names_the_picture(tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.Image.Image.save", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*grid\.png'"):
        save_png(torch.zeros(1, 2, 2), tmp_path / "grid.png")


def test_a_file_that_cannot_be_finished_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), partial_file(tmp_path / "a" / "b.npy") as partial:  # noqa: PT012
        np.save(partial, np.zeros(2))
        raise ZeroDivisionError
    assert not list((tmp_path / "a").iterdir())
