import pytest
import torch

from gas_ext.losses import LOSSES, PerceptualLoss, get_loss, huber_loss, l1_loss, l2_loss


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 4, 3, 5, 5, dtype=torch.float64, generator=generator)


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
    with pytest.raises(ValueError, match="l1, l2, huber"):
        get_loss("lpips")


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
