"""A network that turns images into feature vectors, with what must be recorded of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from gas_ext._utils.noise import to_bytes

INPUT_RANGE = "[-1, 1]"


@dataclass(frozen=True)
class FeatureExtractor:
    """Maps images ``(B, C, H, W)`` in [-1, 1] to feature vectors ``(B, F)`` in float32, without gradients.

    Parameters
    ----------
    name : str
        Its name, recorded with every number made with it.
    size : int
        F, the length of a feature vector.
    embed : callable
        The network: images to vectors. With a quantization it is given bytes as float32 in [0, 255].
    weights_hash : str
        SHA-256 of the weights.
    resize : str
        How images are resized before or inside the network, in words.
    quantization : "none", "uint8" or "uint8-truncated"
        Images are first made bytes, as if they had been saved as 8-bit pictures and read again:
        ``floor(127.5 x + 128)`` or, truncated, ``floor(127.5 (x + 1))``, clipped to [0, 255].
    device : device
        Where the network is; images are taken there.
    is_inception : bool
        Whether this is the Inception network that the FID and KID are defined with.
    feature_maps : callable, optional
        Maps images in [-1, 1] to maps ``(B, F_l, H_l, W_l)`` for
        `gas_ext.evaluation.metrics.perceptual_distances`.

    Examples
    --------
    >>> means = FeatureExtractor("channel means", 3, lambda images: images.mean(dim=(2, 3)))
    >>> means(torch.zeros(2, 3, 8, 8))
    tensor([[0., 0., 0.],
            [0., 0., 0.]])
    >>> means.frechet_name
    'Frechet distance (channel means)'
    """

    name: str
    size: int
    embed: Callable[[Tensor], Tensor]
    weights_hash: str = ""
    resize: str = "none"
    quantization: Literal["none", "uint8", "uint8-truncated"] = "none"
    device: str | torch.device = "cpu"
    is_inception: bool = False
    feature_maps: Callable[[Tensor], Sequence[Tensor]] | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the features ``(B, F)``; a pixel that is NaN stays visible as NaN in its image's features.

        Raises
        ------
        ValueError
            If the images are not a batch of gray or RGB images of a floating-point type.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.is_floating_point():
            raise ValueError(
                f"{self.name} was given {images.dtype} of shape {tuple(images.shape)}; expected "
                "floating-point images (batch, 1 or 3, height, width) in [-1, 1]"
            )
        batch = images.detach().to(self.device, torch.float32)
        features = self.embed(self._quantized(batch)).float()
        if features.shape != (len(images), self.size):
            raise ValueError(
                f"{self.name} made features of shape {tuple(features.shape)} from {len(images)} images; "
                f"expected {(len(images), self.size)}"
            )
        return features

    def _quantized(self, images: Tensor) -> Tensor:
        if self.quantization == "none":
            return images
        return to_bytes(images, truncate=self.quantization == "uint8-truncated")

    def truncated(self) -> FeatureExtractor:
        """Return this extractor for samples of a model with `Denoiser.truncates`: its bytes are cut off."""
        return self if self.quantization == "none" else replace(self, quantization="uint8-truncated")

    @property
    def frechet_name(self) -> str:
        """What a Frechet distance with these features is called: only with Inception's it is the FID."""
        return f"{'FID' if self.is_inception else 'Frechet distance'} ({self.name})"

    @property
    def kernel_name(self) -> str:
        """What a kernel distance with these features is called: only with Inception's it is the KID."""
        return f"{'KID' if self.is_inception else 'kernel distance'} ({self.name})"

    def describe(self) -> dict[str, Any]:
        """Return what a number must carry, as plain values."""
        return {
            "extractor": self.name,
            "size": self.size,
            "weights_sha256": self.weights_hash,
            "resize": self.resize,
            "quantization": self.quantization,
            "input_range": INPUT_RANGE,
            "frechet_name": self.frechet_name,
            "kernel_name": self.kernel_name,
        }
