import pytest
from toy_run import make_toy_samples


@pytest.fixture(scope="session")
def toy_samples(tmp_path_factory):
    """A folder of the toy teacher's samples."""
    folder = tmp_path_factory.mktemp("toy") / "samples"
    make_toy_samples(folder)
    return folder


@pytest.fixture
def folder(tmp_path, toy_samples):
    """A folder for runs, with the toy teacher's samples in samples/."""
    (tmp_path / "samples").symlink_to(toy_samples)
    return tmp_path
