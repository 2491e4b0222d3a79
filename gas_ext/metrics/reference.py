"""What samples are compared with: moments of feature vectors and, where known, the vectors themselves."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from gas_ext.checks import path_of
from gas_ext.files import file_hash
from gas_ext.metrics.arrays import Features, check_features
from gas_ext.metrics.moments import Statistics, feature_statistics
from gas_ext.sealed_file import checksum, read_safetensors, write_sealed

_KEY = "gas_ext_reference"
_VERSION = 1


@dataclass(frozen=True, eq=False)
class Reference:
    """Moments of reference features, and the features themselves where they are known.

    Parameters
    ----------
    name : str
        What it was made of, such as "cifar10-32x32" or "teacher, 10000 samples".
    statistics : Statistics
        Mean and covariance; a size of 0 means that the file does not tell.
    features : Tensor, optional
        ``(M, F)`` float32. Without them only the Frechet distance can be measured.
    extractor : mapping, optional
        `FeatureExtractor.describe` of the network that made them; None where the file does not tell.
    sha256 : str
        Of a .npz file, its SHA-256; else, if not given, of all that is in here.

    Examples
    --------
    >>> reference = Reference.from_features("two points", torch.tensor([[0.0], [2.0]]))
    >>> reference.count, reference.statistics.covariance.item()
    (2, 2.0)
    """

    name: str
    statistics: Statistics
    features: Tensor | None = None
    extractor: Mapping[str, Any] | None = None
    sha256: str = ""

    def __post_init__(self) -> None:
        if not self.sha256:
            contents = _contents(self.name, self.statistics, self.features, self.extractor)
            object.__setattr__(self, "sha256", checksum(*contents))

    @property
    def count(self) -> int | None:
        """Number of reference images, where it is known."""
        return self.statistics.size or None

    @classmethod
    def from_features(
        cls, name: str, features: Features, extractor: Mapping[str, Any] | None = None, keep: bool = True
    ) -> Reference:
        """Make a reference of feature vectors ``(M, F)``, kept as float32 unless `keep` is False."""
        check_features(features, 2)
        statistics = feature_statistics(features)
        vectors = None
        if keep:
            vectors = features if isinstance(features, Tensor) else torch.from_numpy(np.array(features))
            vectors = vectors.detach().to("cpu", torch.float32)
        return cls(name, statistics, vectors, extractor)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file that appears when it is complete."""
        write_sealed(Path(path), _KEY, *_contents(self.name, self.statistics, self.features, self.extractor))

    @classmethod
    def load(cls, path: str | os.PathLike[str], name: str | None = None) -> Reference:
        """Read a reference.

        Parameters
        ----------
        path : path
            A file of `save`; or a .npz file with "mu" and "sigma", as EDM and clean-fid publish them, or
            with "feats", as clean-fid writes for the KID. Nothing in it is unpickled.
        name : str, optional
            Its name, if not the one in the file or the file's own.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it is damaged or of another kind.

        Examples
        --------
        >>> reference = Reference.load("cifar10-32x32.npz")  # doctest: +SKIP
        """
        source = path_of("path", path)
        if not source.is_file():
            raise FileNotFoundError(f"there is no reference {source}; check the path")
        if source.suffix == ".npz":
            return _read_npz(source, name or source.stem)
        return _read_sealed(source, name)


def _contents(
    name: str, statistics: Statistics, features: Tensor | None, extractor: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return record and tensors of a file."""
    tensors = {"mean": statistics.mean, "covariance": statistics.covariance}
    if features is not None:
        tensors["features"] = features
    described = None if extractor is None else dict(extractor)
    record = {"format": _VERSION, "name": name, "count": statistics.size, "extractor": described}
    return record, tensors


def _read_sealed(path: Path, name: str | None) -> Reference:
    try:
        metadata, tensors = read_safetensors(path)
        record = json.loads(metadata[_KEY])
        intact = record["format"] == _VERSION and record["sha256"] == checksum(record, tensors)
        statistics = Statistics(tensors["mean"], tensors["covariance"], int(record["count"]))
    except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
        raise ValueError(
            f"{path} is no reference, or is damaged ({type(error).__name__}); make it again"
        ) from error
    if not intact:
        raise ValueError(
            f"{path} is damaged, or of another version: its checksum does not fit; make it again"
        )
    return Reference(
        name or record["name"], statistics, tensors.get("features"), record["extractor"], record["sha256"]
    )


def _read_npz(path: Path, name: str) -> Reference:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in ("mu", "sigma", "feats") if key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no .npz file, or is damaged ({type(error).__name__})") from error
    sha256 = file_hash(path)
    if "feats" in arrays:
        features = torch.from_numpy(arrays["feats"]).float()
        check_features(features, 2)
        return Reference(name, feature_statistics(features), features, None, sha256)
    if not {"mu", "sigma"} <= arrays.keys():
        raise ValueError(f'{path} holds no reference statistics: expected "mu" and "sigma", or "feats"')
    mean, covariance = (torch.from_numpy(arrays[key]).double() for key in ("mu", "sigma"))
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        shapes = f"{tuple(mean.shape)} and {tuple(covariance.shape)}"
        raise ValueError(f"{path} holds mu and sigma of shapes {shapes}; expected (F,) and (F, F)")
    return Reference(name, Statistics(mean, covariance, 0), None, None, sha256)
