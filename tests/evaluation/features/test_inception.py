"""The Inception conventions on a small network of the same interface, against clean-fid's own code."""

import sys

import numpy as np
import pytest
import torch
from feature_tools import save_inception, smooth_images
from PIL import Image

from gas_ext._utils.files import file_hash
from gas_ext.evaluation.features import (
    INCEPTION_SHA256,
    FeatureExtractor,
    load_features,
    load_inception,
    to_bytes,
)
from gas_ext.evaluation.features.inception import resize_images
from gas_ext.evaluation.metrics import feature_statistics, frechet_distance

NAMES = ["inception-clean", "inception-legacy", "inception-edm"]


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    return save_inception(tmp_path_factory.mktemp("inception") / "inception-2015-12-05.pt")


@pytest.fixture
def images():
    return smooth_images()


def save_pngs(images, folder):
    """Save images as samplers do."""
    folder.mkdir()
    for i, image in enumerate(to_bytes(images).permute(0, 2, 3, 1).byte().numpy()):
        Image.fromarray(image).save(folder / f"{i:03}.png")
    return str(folder)


def load(name, path):
    if name == "inception-clean":
        pytest.importorskip("cleanfid")
    return load_features(name, weights=path, sha256=file_hash(path))


@pytest.mark.parametrize(
    ("name", "mode"), [("inception-clean", "clean"), ("inception-legacy", "legacy_tensorflow")]
)
def test_features_of_images_agree_with_clean_fid(inception_file, images, tmp_path, clean_fid, name, mode):
    script = pytest.importorskip("cleanfid.inception_torchscript")
    network = script.InceptionV3W(inception_file.parent, download=False, resize_inside=mode != "clean")
    folder = save_pngs(images, tmp_path / "images")
    options = {"mode": mode, "num_workers": 0, "device": "cpu", "verbose": False}
    expected = clean_fid.get_folder_features(folder, network, **options)
    found = load(name, inception_file)(images)
    assert found.shape == (9, 2048)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_frechet_distance_of_folders_agrees_with_clean_fid(images, tmp_path, clean_fid):
    def embed(x):  # full rank with nine images
        return torch.stack([x.mean(dim=(1, 2, 3)), x[:, 0].std(dim=(1, 2)), x[:, 2, 100, 200]], dim=1)

    others = images.flip(0) * 0.7 + 0.1
    folders = [save_pngs(images, tmp_path / "a"), save_pngs(others, tmp_path / "b")]
    options = {"mode": "clean", "num_workers": 0, "device": "cpu", "verbose": False}
    expected = clean_fid.compute_fid(*folders, custom_feat_extractor=embed, **options)
    resizer = clean_fid.build_resizer("clean")
    extractor = FeatureExtractor("three", 3, lambda x: embed(resize_images(x, resizer)), quantization="uint8")
    a, b = feature_statistics(extractor(images)), feature_statistics(extractor(others))
    found = frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    assert found == pytest.approx(expected, rel=1e-6)


def test_edm_convention_is_bytes_into_the_network(inception_file, images):
    """As EDM's fid script does with images saved by its generate script."""
    with pytest.warns(FutureWarning, match="deprecated"):
        network = torch.jit.load(str(inception_file))
    saved = (images * 127.5 + 128).clip(0, 255).to(torch.uint8)
    with torch.no_grad():
        expected = network(saved, return_features=True)
    edm, clean = (load(name, inception_file) for name in ("inception-edm", "inception-clean"))
    torch.testing.assert_close(edm(images), expected)
    assert (clean(images) - expected).abs().max() > 1e-3
    assert clean.resize != edm.resize


@pytest.mark.parametrize("name", NAMES)
def test_images_are_independent_and_may_be_gray(inception_file, images, name):
    features = load(name, inception_file)
    alone = torch.cat([features(image[None]) for image in images[:3]])
    torch.testing.assert_close(features(images[:3]), alone, rtol=1e-4, atol=1e-5)
    gray = images[:2, :1]
    torch.testing.assert_close(features(gray), features(gray.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)
    assert features(images[:0]).shape == (0, 2048)


@pytest.mark.parametrize("name", NAMES)
def test_nan_and_the_record(inception_file, images, name):
    features = load(name, inception_file)
    images[1] = float("nan")
    found = features(images[:2])
    assert torch.isfinite(found[0]).all()
    assert torch.isnan(found[1]).all()
    record = features.describe()
    assert record["weights_sha256"] == file_hash(inception_file)
    assert record["quantization"] == "uint8"
    assert "299x299" in record["resize"]
    # Not FID, as these are not the weights of Inception.
    assert record["frechet_name"] == f"Frechet distance ({name})"


@pytest.mark.parametrize(
    ("sha256", "message"), [(None, f"{INCEPTION_SHA256}.*pass the sha256"), ("00000000", "00000000")]
)
def test_files_with_another_hash_are_rejected(inception_file, sha256, message):
    with pytest.raises(ValueError, match=message):
        load_inception("inception-edm", weights=inception_file, sha256=sha256)


def test_default_path(inception_file, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"checkpoints/inception-2015-12-05.pt; download https://"):
        load_features("inception-edm")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / inception_file.name).write_bytes(inception_file.read_bytes())
    assert load_inception("inception-edm", sha256=file_hash(inception_file)).size == 2048


def test_files_of_other_types(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="not a TorchScript network"):
        load_inception("inception-edm", weights=path, sha256=file_hash(path))
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    with pytest.raises(ValueError, match="not the Inception network"):
        load_inception("inception-edm", weights=path, sha256=file_hash(path))


def test_clean_convention_needs_clean_fid(inception_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "cleanfid.resize", None)
    with pytest.raises(ImportError, match=r"gas_ext\[fid\]"):
        load_inception("inception-clean", weights=inception_file)
