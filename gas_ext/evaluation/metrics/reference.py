"""References that samples are compared with: moments of feature vectors and, if known, the vectors."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gas_ext._utils.checks import path_of
from gas_ext._utils.files import file_hash
from gas_ext._utils.records import COUNT, OPTIONAL_RECORD, TEXT, Fields, reason_of
from gas_ext._utils.sealed_files import checksum, read_sealed, write_sealed
from gas_ext.evaluation.metrics.arrays import Features, check_features
from gas_ext.evaluation.metrics.moments import Statistics, feature_statistics

_KEY = "gas_ext_reference"
_VERSION = 1
_FIELDS: Fields = {"name": TEXT, "count": COUNT, "extractor": OPTIONAL_RECORD}
_ARRAYS = ("mu", "sigma", "feats")
_MOST_EXPANSION = 100  # of a compressed .npz file


@dataclass(frozen=True, eq=False)
class Reference:
    """Moments of reference features, and the features themselves if they are known.

    Parameters
    ----------
    name : str
        Its source, such as "cifar10-32x32" or "teacher, 10000 samples".
    statistics : Statistics
        Mean and covariance; a size of 0 if the file does not record it.
    features : Tensor, optional
        ``(M, F)`` float32. Without them only the Frechet distance can be measured.
    extractor : mapping, optional
        `FeatureExtractor.describe` of the network that made them; None if the file does not record it.
    sha256 : str
        SHA-256 of the .npz file it was read from; default: of its contents.

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
            object.__setattr__(self, "sha256", checksum(*self._contents()))

    @property
    def count(self) -> int | None:
        """Number of reference images, or None if unknown."""
        return self.statistics.size or None

    @classmethod
    def from_features(
        cls, name: str, features: Features, extractor: Mapping[str, Any] | None = None, keep: bool = True
    ) -> Reference:
        """Make a reference from feature vectors ``(M, F)``, stored as float32 unless `keep` is False."""
        check_features(features, 2)
        statistics = feature_statistics(features)
        vectors = None
        if keep:
            vectors = features if isinstance(features, Tensor) else torch.from_numpy(np.array(features))
            vectors = vectors.detach().to("cpu", torch.float32)
        return cls(name, statistics, vectors, extractor)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file; the write is atomic."""
        write_sealed(Path(path), _KEY, *self._contents())

    def _contents(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the record and the tensors of a file."""
        tensors = {"mean": self.statistics.mean, "covariance": self.statistics.covariance}
        if self.features is not None:
            tensors["features"] = self.features
        extractor = None if self.extractor is None else dict(self.extractor)
        record = {
            "format": _VERSION,
            "name": self.name,
            "count": self.statistics.size,
            "extractor": extractor,
        }
        return record, tensors

    @classmethod
    def load(cls, path: str | os.PathLike[str], name: str | None = None) -> Reference:
        """Read a reference.

        Parameters
        ----------
        path : path
            A file from `save`, or a .npz file with "mu" and "sigma", as EDM and clean-fid publish them, or
            with "feats", as clean-fid writes for the KID. Nothing in it is unpickled.
        name : str, optional
            Its name. Default: the recorded one, or the stem of a .npz file.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it is damaged or not a reference.

        Examples
        --------
        >>> reference = Reference.load("cifar10-32x32.npz")  # doctest: +SKIP
        """
        source = path_of("path", path)
        if not source.is_file():
            raise FileNotFoundError(f"There is no reference {source}; check the path.")
        if source.suffix == ".npz":
            return _read_npz(source, name or source.stem)
        return _read_sealed(source, name)


def _read_sealed(path: Path, name: str | None) -> Reference:
    record, tensors = read_sealed(path, _KEY, "reference", _FIELDS, version=_VERSION, version_field="format")
    mean, covariance, features = (tensors.get(key) for key in ("mean", "covariance", "features"))
    statistics = _statistics(path, mean, covariance, record["count"])
    if features is not None and (features.ndim != 2 or not bool(torch.isfinite(features).all())):
        raise ValueError(f"{path} is damaged: its features are not finite vectors; recreate it.")
    return Reference(name or record["name"], statistics, features, record["extractor"], record["sha256"])


def _statistics(path: Path, mean: Tensor | None, covariance: Tensor | None, count: int) -> Statistics:
    """Return the moments; ValueError unless they are finite and their shapes fit."""
    shapes = [() if value is None else tuple(value.shape) for value in (mean, covariance)]
    if mean is None or covariance is None or len(shapes[0]) != 1 or shapes[1] != shapes[0] * 2:
        raise ValueError(f"{path} has mu and sigma of shapes {shapes}, but must have (F,) and (F, F).")
    if not bool(torch.isfinite(mean).all() and torch.isfinite(covariance).all()):
        raise ValueError(f"{path} is damaged: its mu or sigma is not finite; download it again.")
    return Statistics(mean, covariance, count)


def _read_npz(path: Path, name: str) -> Reference:
    try:
        _check_sizes(path)
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: torch.from_numpy(file[key]) for key in _ARRAYS if key in file.files}
    except Exception as error:  # zipfile and NumPy raise many types
        raise ValueError(f"{path} is not a .npz file or is damaged: {reason_of(error)}.") from error
    sha256 = file_hash(path)
    if "feats" in arrays:
        features = arrays["feats"].float()
        try:
            check_features(features, 2)
        except ValueError as error:
            reason = reason_of(error)
            raise ValueError(f"{path} cannot be used: {reason[0].lower()}{reason[1:]}.") from error
        return Reference(name, feature_statistics(features), features, None, sha256)
    if not {"mu", "sigma"} <= arrays.keys():
        raise ValueError(f'{path} is not a reference: it must contain "mu" and "sigma", or "feats".')
    statistics = _statistics(path, arrays["mu"].double(), arrays["sigma"].double(), 0)
    return Reference(name, statistics, None, None, sha256)


def _check_sizes(path: Path) -> None:
    """Raise ValueError if an archive, or an array in it, would be much larger than the file."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if sum(entry.file_size for entry in entries.values()) > _MOST_EXPANSION * path.stat().st_size:
            raise ValueError(f"it is compressed more than {_MOST_EXPANSION} times")
        for key in _ARRAYS:
            entry = entries.get(f"{key}.npy")
            if entry is None:
                continue
            with archive.open(entry) as member:
                version = np.lib.format.read_magic(member)
                header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
                shape, _, dtype = header(member)
            if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > entry.file_size:
                raise ValueError(f"its {key} of shape {shape} is longer than the file")
