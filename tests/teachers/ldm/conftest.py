"""Golden checkpoints as files, written on first use and deleted at the end."""

import pytest
from ldm_checkpoints import loading_options, state_dict, write_checkpoint

from gas_ext.teachers.ldm import load_checkpoint, load_stable_diffusion_pipeline


@pytest.fixture(scope="session")
def checkpoint_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")

    def file_of(name):
        written = folder / f"{name}.ckpt"
        return written if written.is_file() else write_checkpoint(state_dict(name), written)

    yield file_of
    for path in folder.iterdir():
        path.unlink()


@pytest.fixture(scope="session")
def load(checkpoint_file):
    """load(name, use_ema=None): the teacher (LDM) or pipeline (Stable Diffusion) of a golden checkpoint."""
    loaded = {}

    def load_once(name, use_ema=None):
        if (name, use_ema) not in loaded:
            loader = load_stable_diffusion_pipeline if name.startswith("sd") else load_checkpoint
            loaded[name, use_ema] = loader(checkpoint_file(name), use_ema=use_ema, **loading_options(name))
        return loaded[name, use_ema]

    return load_once
