"""Inception features for FID and KID, by the conventions of clean-fid and EDM.

All use NVIDIA's TorchScript file of the 2015 Inception network (inception-2015-12-05.pt). Its checksum is
verified before it is loaded, since a TorchScript file is a program.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gas_ext._utils.optional import require
from gas_ext.evaluation.features.extractor import FeatureExtractor
from gas_ext.training.losses import check_hash

INCEPTION_URL = (
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"
)
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"

INCEPTION_SIZE = 2048
_EDGE = 299
_INSIDE = f"{_EDGE}x{_EDGE} inside the network (bilinear, TensorFlow 1 rule)"
_CLEAN = f"{_EDGE}x{_EDGE} by Pillow, bicubic with antialiasing, in float per channel (clean-fid)"


def load_inception(
    name: str,
    device: str | torch.device = "cpu",
    weights: str | os.PathLike[str] | None = None,
    sha256: str | None = None,
) -> FeatureExtractor:
    """Load Inception features by a convention.

    Parameters
    ----------
    name : str
        "inception-clean" resizes outside the network with clean-fid's own function. "inception-legacy"
        (clean-fid's legacy_tensorflow) and "inception-edm" resize inside the network: they are the same
        features and differ in the references published for them.
    device : device
        Where to put the network; default "cpu".
    weights : path, optional
        The file. Default: inception-2015-12-05.pt in ``torch.hub.get_dir()``/checkpoints.
    sha256 : str, optional
        SHA-256 of the file (hex), or its first digits; default: that of the published file. With any other
        file the distances are not called FID and KID.

    Raises
    ------
    FileNotFoundError
        If the file does not exist; the message says where to download it.
    ImportError
        If clean-fid is not installed, for "inception-clean".
    ValueError
        If the hash of the file differs, or it is not the Inception network.

    Examples
    --------
    >>> features = load_inception("inception-edm", weights="inception-2015-12-05.pt")  # doctest: +SKIP
    """
    # Before the file is read, so that a missing library is reported at once.
    resizer = require("cleanfid.resize", "fid").build_resizer("clean") if name == "inception-clean" else None
    file_name = INCEPTION_URL.rsplit("/", 1)[1]
    path = Path(torch.hub.get_dir()) / "checkpoints" / file_name if weights is None else Path(weights)
    if not path.is_file():
        raise FileNotFoundError(
            f"{name} needs the Inception network, but there is no file {path}; download {INCEPTION_URL} and "
            "put it there, or pass the path of a copy as weights."
        )
    weights_hash = check_hash(path, sha256 or INCEPTION_SHA256)
    network = _load_script(path, device)

    def embed(images: Tensor) -> Tensor:
        rgb = images.expand(-1, 3, -1, -1)
        if resizer is None:
            features = network(rgb, return_features=True)
        else:
            features = network.layers((resize_images(rgb, resizer) - 128) / 128)
        return torch.as_tensor(features).flatten(1)

    return FeatureExtractor(
        name=name,
        size=INCEPTION_SIZE,
        embed=embed,
        weights_hash=weights_hash,
        resize=_INSIDE if resizer is None else _CLEAN,
        quantization="uint8",
        device=device,
        is_inception=weights_hash == INCEPTION_SHA256,
    )


def resize_images(images: Tensor, resizer: Callable[[Any], Any]) -> Tensor:
    """Resize images ``(B, 3, H, W)`` in [0, 255] one by one with a clean-fid function."""
    resized = [resizer(image.permute(1, 2, 0).cpu().numpy()) for image in images]
    if not resized:
        return images.new_empty(0, 3, _EDGE, _EDGE)
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).to(images.device, torch.float32)


def _load_script(path: Path, device: str | torch.device) -> Any:
    """Load the TorchScript network."""
    try:
        with warnings.catch_warnings():
            # TorchScript is deprecated, but it is the format of the published file.
            warnings.simplefilter("ignore", FutureWarning)
            network = torch.jit.load(path, map_location=device).eval()  # type: ignore[no-untyped-call]
    except Exception as error:  # torch does not document its errors
        raise ValueError(
            f"{path} is not a TorchScript network ({type(error).__name__}); download {INCEPTION_URL}."
        ) from error
    if not hasattr(network, "layers"):
        raise ValueError(f"{path} is not the Inception network; download {INCEPTION_URL}.")
    return network
