import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_hub import COMMIT, FakeHub, repository, serve

from gas_ext.teachers.hub import parse_hub_reference

pytest.importorskip("huggingface_hub")

# In a separate process, because huggingface_hub reads the environment once.
FETCH = """
import sys
from gas_ext.teachers.hub import fetch_file
try:
    print(fetch_file("owner/name", "m.bin"))
except ValueError as error:
    print(f"ValueError: {error}")
"""
FETCH_PIPELINES = """
from huggingface_hub import constants
from gas_ext.teachers.hub import fetch_pipeline
for constants.HF_HUB_OFFLINE in (False, True):
    for variant in (None, "fp16", "bf16"):
        try:
            folder = fetch_pipeline("owner/name", variant=variant)
            print(*sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*") if path.is_file()))
        except ValueError as error:
            print(f"ValueError: {error}")
"""


def fetch(cache: Path, endpoint: str, code: str = FETCH, **environment: str) -> str:
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "no_proxy": "127.0.0.1"}
    environment = {**os.environ, **quiet, "HF_HOME": str(cache), "HF_ENDPOINT": endpoint, **environment}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.process
def test_a_broken_download_is_resumed_and_found_again_without_the_hub(tmp_path):
    content = bytes(range(256)) * 96_000  # huggingface_hub writes 10 MB at a time
    hub = FakeHub({"/owner/name/resolve/main/m.bin": content}, cut=15_000_000)
    with serve(hub) as endpoint:
        path = Path(fetch(tmp_path, endpoint))
        assert path.read_bytes() == content
        assert path.parent.name == COMMIT
        assert hub.ranges[0] == ""
        assert hub.ranges[1].startswith("bytes=1")  # not from the beginning
        requests = hub.requests
        assert fetch(tmp_path, endpoint) == str(path)
        assert hub.requests == requests
    assert fetch(tmp_path, "http://127.0.0.1:9", HF_HUB_OFFLINE="1") == str(path)


@pytest.mark.process
def test_a_damaged_file_in_the_cache_is_named(tmp_path):
    with serve(FakeHub({"/owner/name/resolve/main/m.bin": b"weights"})) as endpoint:
        blob = Path(fetch(tmp_path, endpoint)).resolve()
    blob.write_bytes(b"Weights")
    assert f"ValueError: {blob} is damaged" in fetch(tmp_path, "http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("environment", "reason"),
    [({}, "127.0.0.1 cannot be reached"), ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE forbids")],
)
def test_an_unreachable_hub_is_reported_at_once(tmp_path, environment, reason):
    out = fetch(tmp_path, "http://127.0.0.1:9", **environment)
    assert out.startswith("ValueError: m.bin of owner/name is not in the cache")
    assert reason in out
    assert "\n" not in out


@pytest.mark.process
def test_a_file_that_is_not_on_the_hub(tmp_path):
    with serve(FakeHub({})) as endpoint:
        out = fetch(tmp_path, endpoint)
    assert out.startswith("ValueError: m.bin of owner/name could not be downloaded")
    assert "\n" not in out


@pytest.mark.process
def test_pipelines_their_variants_and_unused_parts(tmp_path):
    pytest.importorskip("diffusers")
    classes = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDIMScheduler"]}
    checker = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.37.0", **classes, **checker}
    files = {
        "model_index.json": json.dumps(index).encode(),
        "scheduler/scheduler_config.json": b"{}",
        "unet/config.json": b"{}",
        "unet/diffusion_pytorch_model.safetensors": b"",
        "unet/diffusion_pytorch_model.fp16.safetensors": b"",
        "unet/diffusion_pytorch_model.bin": b"",
        "safety_checker/model.safetensors": b"",
    }
    plain = ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json"]
    plain.append("unet/diffusion_pytorch_model.safetensors")
    both = sorted([*plain, "unet/diffusion_pytorch_model.fp16.safetensors"])
    with serve(FakeHub(repository(files))) as endpoint:
        out = fetch(tmp_path, endpoint, FETCH_PIPELINES).splitlines()
    assert out[:2] == [" ".join(plain), " ".join(both)]
    assert out[2].startswith("ValueError: The pipeline owner/name (variant bf16) could not be downloaded")
    assert out[3:5] == [" ".join(both)] * 2  # from the cache
    assert out[5].startswith("ValueError: The pipeline owner/name (variant bf16) is not in the cache")


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("owner/name", ("owner/name", None)),
        ("hf://owner/na.me-2", ("owner/na.me-2", None)),
        ("owner/name/model.ckpt", ("owner/name", "model.ckpt")),
        ("owner/name/a/b.safetensors", ("owner/name", "a/b.safetensors")),
        ("cifar10", None),
        ("./owner/name", None),
        ("/owner/name", None),
        ("owner/name/folder", None),
        ("../name", None),
        ("owner/..", None),
        ("owner/name/../../file.pkl", None),
        ("", None),
    ],
)
def test_references(text, reference):
    assert parse_hub_reference(text) == reference
