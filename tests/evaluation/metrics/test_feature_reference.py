import zipfile

import numpy as np
import pytest
import torch
from metric_tools import mapped, normal

from gas_ext._utils.files import file_hash
from gas_ext.evaluation.metrics import Reference, feature_statistics, merge_statistics

DESCRIPTION = {"extractor": "means", "size": 3, "resize": "none", "quantization": "none"}


@pytest.mark.parametrize("keep", [True, False])
def test_save_and_load(tmp_path, keep):
    made = Reference.from_features("made", normal(0, 20, 3), DESCRIPTION, keep)
    made.save(tmp_path / "reference.safetensors")
    read = Reference.load(tmp_path / "reference.safetensors")
    assert (read.name, read.count, read.extractor, read.sha256) == ("made", 20, DESCRIPTION, made.sha256)
    assert torch.equal(read.statistics.mean, made.statistics.mean)
    assert torch.equal(read.statistics.covariance, made.statistics.covariance)
    assert (read.features is not None) == keep
    if keep:
        assert torch.equal(read.features, normal(0, 20, 3).float())
    assert [path.name for path in tmp_path.iterdir()] == ["reference.safetensors"]


def test_hash_covers_the_contents(tmp_path):
    features = normal(0, 20, 3)
    first = Reference.from_features("a", features)
    for same in (features.clone(), mapped(features, tmp_path)):
        assert first.sha256 == Reference.from_features("a", same).sha256
    others = [
        Reference.from_features("b", features),
        Reference.from_features("a", features + 1e-6),
        Reference.from_features("a", features, DESCRIPTION),
        Reference.from_features("a", features, keep=False),
        Reference("a", feature_statistics(features + 1)),
    ]
    assert len({first.sha256, *(other.sha256 for other in others)}) == 6


def test_edm_statistics(tmp_path):
    features = normal(1, 50, 4)
    path = tmp_path / "cifar10-32x32.npz"
    np.savez(path, mu=features.numpy().mean(0), sigma=np.cov(features.numpy(), rowvar=False))
    reference = Reference.load(path)
    assert (reference.name, reference.count, reference.features) == ("cifar10-32x32", None, None)
    assert reference.sha256 == file_hash(path)
    torch.testing.assert_close(reference.statistics.covariance, feature_statistics(features).covariance)


def test_clean_fid_features(tmp_path):
    path = tmp_path / "custom_clean_kid.npz"
    np.savez_compressed(path, feats=normal(2, 50, 4).float().numpy())
    reference = Reference.load(path, name="mine")
    assert (reference.name, reference.count, tuple(reference.features.shape)) == ("mine", 50, (50, 4))


def test_damaged_and_foreign_files(tmp_path):
    path = tmp_path / "reference.safetensors"
    Reference.from_features("made", normal(0, 20, 3)).save(path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="does not match its SHA-256"):
        Reference.load(path)
    path.write_bytes(data[:40])
    with pytest.raises(ValueError, match="damaged"):
        Reference.load(path)
    with pytest.raises(FileNotFoundError, match="check the path"):
        Reference.load(tmp_path / "none.npz")


def test_file_that_is_not_an_archive(tmp_path):
    (tmp_path / "other.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(ValueError, match="damaged"):
        Reference.load(tmp_path / "other.npz")


def test_parts_of_several_processes_are_merged_from_files(tmp_path):
    """Each process saves the moments of its share; none holds all features."""
    features = normal(3, 90, 4)
    for i, part in enumerate(features.split([40, 15, 35])):
        Reference.from_features(f"part {i}", part, DESCRIPTION, keep=False).save(
            tmp_path / f"{i}.safetensors"
        )
    parts = [Reference.load(path) for path in sorted(tmp_path.iterdir())]
    merged, whole = merge_statistics(part.statistics for part in parts), feature_statistics(features)
    assert merged.size == 90
    torch.testing.assert_close(merged.covariance, whole.covariance, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros(3)}, '"mu" and "sigma"'),
        ({"mu": np.zeros(3), "sigma": np.zeros(3)}, r"must have \(F,\)"),
        ({"mu": np.array([{}], dtype=object), "sigma": np.zeros(3)}, "damaged"),  # rather than unpickled
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "not finite"),
        (
            {"feats": np.zeros(3)},
            r"a\.npz cannot be used: the features have shape \(3,\), but .*\.$",
        ),
    ],
)
def test_npz_files_of_other_contents(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        Reference.load(tmp_path / "a.npz")


@pytest.mark.parametrize(("shape", "method"), [((2**40,), 0), ((-1,), 0), ((2**22,), 8)])
def test_npz_files_cannot_lie_about_their_sizes(tmp_path, shape, method):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as file, file.open("mu.npy", "w") as member:
        header = {"descr": "<f8", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(member, header)
        member.write(bytes(8 * shape[0] if method else 8))
    with pytest.raises(ValueError, match=r"longer than the file|compressed more than"):
        Reference.load(tmp_path / "a.npz")
