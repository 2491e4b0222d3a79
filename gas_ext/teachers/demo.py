"""The embedded teacher: a Fashion-MNIST denoiser, its feature network and reference statistics.

All files are in ``weights/demo`` next to this module, with README.md as their card. The weights come from
``examples/train_demo_teacher.py``.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from gas_ext._utils.sealed_files import read_safetensors
from gas_ext.denoisers import Denoiser
from gas_ext.schedules import NoiseSchedule
from gas_ext.teachers.defaults import plain_defaults
from gas_ext.teachers.demo_network import DemoNetwork, DemoNetworkConfig
from gas_ext.teachers.features import FeatureNetwork

__all__ = ["DemoFeatures", "DemoTeacher", "load_demo_features", "load_demo_statistics", "load_demo_teacher"]

WEIGHTS = Path(__file__).parent / "weights" / "demo"


class DemoTeacher(Denoiser):
    """The embedded denoiser in the coordinates of the VP-linear schedule.

    Frozen and in evaluation mode; gradients flow to `x` and `t`. Each sample's output depends on that sample
    alone, up to rounding. `weights_hash` is the SHA-256 of the weights file, as a solver file records it.
    """

    num_classes: int

    def __init__(self, network: DemoNetwork, weights_hash: str = "") -> None:
        config = network.config
        super().__init__(
            schedule=NoiseSchedule.vp_linear(0.1, 20.0),
            prediction_type="sample",
            sample_shape=(config.image_channels, config.image_size, config.image_size),
            name="fashion-mnist-32",
            condition_kind="label",
            num_classes=config.num_classes,
        )
        self.network = network
        self.weights_hash = weights_hash
        self.requires_grad_(False).eval()

    def predict(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Predict the clean image; the label 10, like None, means "no label".

        With y = x / alpha and the noise level sigma / alpha this is the EDM denoiser.
        """
        batch = x.shape[0]
        dtype = self.network.trunk.stem.weight.dtype
        t = t.to(device=x.device, dtype=torch.float64).expand(batch)
        alpha = self.schedule.alpha(t)
        if condition is None:
            condition = torch.full((), self.num_classes, dtype=torch.int64, device=x.device)
        y = x.to(dtype) * (1 / alpha).to(dtype)[:, None, None, None]
        output: Tensor = self.network(y, self.schedule.sigma(t) / alpha, condition.expand(batch))
        return output.to(x.dtype)


class DemoFeatures(FeatureNetwork):
    """The frozen feature network with its test accuracy, a fraction."""

    test_accuracy: float = float("nan")


@plain_defaults()
def load_demo_teacher(device: str | torch.device = "cpu", folder: Path = WEIGHTS) -> DemoTeacher:
    """Load the embedded teacher.

    Parameters
    ----------
    device : device
        Device of the teacher.
    folder : Path
        A folder written by ``examples/train_demo_teacher.py``. Default: the embedded one.

    Raises
    ------
    ValueError
        If the file is missing or damaged.

    Examples
    --------
    >>> teacher = load_demo_teacher()
    >>> x = torch.randn(2, *teacher.sample_shape)
    >>> teacher(x, torch.tensor(0.5, dtype=torch.float64), torch.tensor([1, 9])).shape
    torch.Size([2, 1, 32, 32])
    """
    path = folder / "denoiser.safetensors"
    metadata, tensors = _read(path)
    network = DemoNetwork(DemoNetworkConfig.from_dict(json.loads(metadata["config"])))
    network.load_state_dict(tensors)
    weights_hash = hashlib.sha256(path.read_bytes()).hexdigest()
    return DemoTeacher(network, weights_hash).to(device)


@plain_defaults()
def load_demo_features(device: str | torch.device = "cpu", folder: Path = WEIGHTS) -> DemoFeatures:
    """Load the feature network "fashion-cnn-64", frozen.

    Raises
    ------
    ValueError
        If the file is missing or damaged.

    Examples
    --------
    >>> features = load_demo_features()
    >>> features(torch.zeros(3, 1, 32, 32)).shape
    torch.Size([3, 64])
    """
    metadata, tensors = _read(folder / "features.safetensors")
    network = DemoFeatures()
    network.load_state_dict(tensors)
    network.test_accuracy = float(metadata["test_accuracy"])
    network.requires_grad_(False).eval()
    return network.to(device)


@plain_defaults()
def load_demo_statistics(folder: Path = WEIGHTS) -> dict[str, tuple[Tensor, Tensor, int]]:
    """Load mean (64,), covariance (64, 64), both float64, and count of the reference features.

    Returns
    -------
    dict
        "data": the 60,000 training images; "teacher": 10,000 samples of the teacher with 20 evaluations.

    Raises
    ------
    ValueError
        If the file is missing or damaged.

    Examples
    --------
    >>> mean, covariance, count = load_demo_statistics()["data"]
    >>> mean.shape, covariance.shape, count
    (torch.Size([64]), torch.Size([64, 64]), 60000)
    """
    metadata, tensors = _read(folder / "statistics.safetensors")
    return {
        key: (tensors[f"{key}.mean"], tensors[f"{key}.covariance"], int(metadata[f"{key}.count"]))
        for key in ("data", "teacher")
    }


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the metadata and tensors of a safetensors file."""
    if not path.is_file():
        raise ValueError(
            f"{path} is missing; reinstall gas_ext, or create it with examples/train_demo_teacher.py."
        )
    try:
        return read_safetensors(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); reinstall gas_ext.") from error
