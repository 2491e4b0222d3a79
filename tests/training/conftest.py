import pytest
from toy_run import make_toy_samples


@pytest.fixture(scope="session")
def toy_samples(tmp_path_factory):
    """A folder of the toy teacher's samples."""
    folder = tmp_path_factory.mktemp("toy") / "samples"
    make_toy_samples(folder)
    return folder
