"""examples/train_demo_teacher.py on a tiny synthetic data set."""

from __future__ import annotations

import gzip
import importlib.util
import struct
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from gas_ext.teachers import load_demo_features, load_demo_statistics, load_demo_teacher
from gas_ext.teachers.demo_network import DemoNetwork, DemoNetworkConfig

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "train_demo_teacher.py"
TINY = DemoNetworkConfig(channels=(16, 32), blocks=(1, 1), attention=(False, True), embedding_size=32)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_demo_teacher", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """An IDX folder: bright squares whose position gives the class."""
    folder = tmp_path / "data"
    folder.mkdir()
    random = np.random.default_rng(0)
    for split, count in (("train", 300), ("t10k", 50)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = random.integers(0, 20, (count, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label : 2 * label + 8, 10:18] = 200
        for content, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (folder / f"{split}-{content}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    return folder


def make_trainer(script: ModuleType, data: Path, checkpoint: Path, steps: int = 8):
    images, labels = script.load_images(data, "train")
    torch.manual_seed(0)
    loss = script.denoiser_loss(images, labels, 16, seed=0)
    return script.Trainer(DemoNetwork(TINY), loss, steps, 2e-3, checkpoint, warmup=2)


def test_images_are_read_and_padded(script: ModuleType, data: Path) -> None:
    images, labels = script.load_images(data, "train")
    assert (images.shape, images.dtype) == ((300, 1, 32, 32), torch.uint8)
    assert labels[:12].tolist() == [*range(10), 0, 1]
    assert images[3, 0, 8, 12] == 200
    border = images.clone()
    border[:, :, 2:30, 2:30] = 0
    assert border.max() == 0
    assert script.to_unit_range(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]


def test_missing_and_foreign_data_are_refused(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="dataset-fashion-mnist"):
        script.load_images(tmp_path, "train")
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"\x00\x00\x0d\x01" + bytes(8)))
    with pytest.raises(SystemExit, match="not an IDX file"):
        script.read_idx(tmp_path / "x.gz")


def test_an_epoch_shows_every_image_once(script: ModuleType) -> None:
    first = torch.cat([script.batch_indices(12, 4, 0, step) for step in range(3)])
    second = torch.cat([script.batch_indices(12, 4, 0, step) for step in range(3, 6)])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(12))
    assert first.tolist() != second.tolist()


def test_learning_rate_warms_up_stays_and_falls_to_zero(script: ModuleType) -> None:
    rates = [script.learning_rate(step, 100, 2.0, warmup=10) for step in range(101)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9:61] == [2.0] * 52
    assert rates[80] == pytest.approx(1.0)
    assert rates[100] == 0


@pytest.mark.slow
def test_training_reduces_the_loss(script: ModuleType, data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(script, data, tmp_path / "c.pt", steps=30)

    def held_out() -> float:
        with torch.no_grad():
            return sum(trainer.loss(trainer.module, 1000 + i).item() for i in range(4))

    before = held_out()
    for _ in range(15):
        trainer.one_step()
    assert held_out() < 0.9 * before


@pytest.mark.slow
def test_a_resumed_run_gives_the_same_bits(script: ModuleType, data: Path, tmp_path: Path) -> None:
    straight = make_trainer(script, data, tmp_path / "straight.pt")
    straight.run("test")
    stopped = make_trainer(script, data, tmp_path / "stopped.pt")
    stopped.run("test", stop_at=3)
    resumed = make_trainer(script, data, tmp_path / "stopped.pt")
    assert resumed.step == 3
    resumed.run("test")
    assert resumed.step == straight.step == 8
    assert resumed.average_loss == straight.average_loss
    for module in ("module", "averaged"):
        a, b = (
            t.module.state_dict() if module == "module" else t.averaged_state() for t in (straight, resumed)
        )
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_average_weights_late_steps_by_a_power(script: ModuleType) -> None:
    module = torch.nn.Linear(1, 1, bias=False)
    ema = script.Ema(module, gamma=10.0)
    for step in range(1, 51):
        torch.nn.init.constant_(module.weight, float(step))
        ema.update(module, step)
    # Mean of s under a density s^10 on (0, 50] is 50 * 11 / 12; the sum differs from the integral by < 1 %.
    assert ema.averages["weight"].item() == pytest.approx(50 * 11 / 12, rel=0.015)


@pytest.mark.slow
def test_the_whole_script_writes_a_loadable_folder(script: ModuleType, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    folders = {"data": data, "out": out, "checkpoints": tmp_path / "checkpoints"}
    counts = {"steps": 2, "feature-steps": 2, "batch-size": 4, "samples": 50, "snapshot-every": 1}
    script.main([f"--{name}={value}" for name, value in {**folders, **counts}.items()])
    teacher = load_demo_teacher(folder=out)
    assert teacher.weights_hash in (out / "README.md").read_text()
    assert 0 <= load_demo_features(folder=out).test_accuracy <= 1
    counts = {key: count for key, (_, _, count) in load_demo_statistics(out).items()}
    assert counts == {"data": 300, "teacher": 50}
    assert (out / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert not list(out.glob("*.tmp"))
