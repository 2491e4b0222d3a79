import copy

import pytest
import torch
from toy_run import randn

from gas_ext.training.optimizers import FullMatrixAdam


def zeros(*shape, dtype=torch.float64):
    return torch.nn.Parameter(torch.zeros(*shape, dtype=dtype))


def valley(x, condition):
    """A quadratic valley along the diagonal, far steeper across than along."""
    return condition * (x[0] - x[1]) ** 2 + (x[0] + x[1] - 2) ** 2


def descend(optimizer_class, steps, **settings):
    x = torch.nn.Parameter(torch.tensor([-1.0, -1.0], dtype=torch.float64))
    optimizer = optimizer_class([x], lr=0.05, **settings)
    for noise in 0.1 * randn(steps, 2):
        optimizer.zero_grad()
        (valley(x, 1e4) + noise @ x).backward()
        optimizer.step()
    return valley(x.detach(), 1e4).item()


def test_finds_the_bottom_of_a_narrow_valley_unlike_adam():
    assert descend(FullMatrixAdam, 300) < 0.05 * descend(torch.optim.Adam, 300, betas=(0.9, 0.98))


def test_first_step_without_correlation_is_adams():
    """One coordinate: C = 1, so the step is Adam's divided by sqrt(1 + damping)."""
    a, b = (torch.nn.Parameter(torch.tensor([3.0], dtype=torch.float64)) for _ in range(2))
    ours, adam = FullMatrixAdam([a], lr=0.1, damping=1e-12), torch.optim.Adam([b], lr=0.1, betas=(0.9, 0.98))
    for _ in range(5):
        for parameter, optimizer in ((a, ours), (b, adam)):
            optimizer.zero_grad()
            parameter.square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shrink", [False, True])
def test_step_is_the_inverse_root_of_the_gradient_correlation(shrink):
    x, gradients = zeros(3), randn(6, 3)
    optimizer = FullMatrixAdam([x], lr=1.0, betas=(0.0, 0.5), damping=1e-2, shrink=shrink)
    for gradient in gradients:
        before = x.detach().clone()
        x.grad = gradient.clone()
        optimizer.step()
    weights = 0.5 ** torch.arange(6, 0, -1, dtype=torch.float64)
    second = (gradients.T * (weights / weights.sum())) @ gradients
    scale = second.diagonal().sqrt()
    unknown = 3 / (3 + 6) if shrink else 0.0  # k / (k + n)
    identity = torch.eye(3, dtype=torch.float64)
    correlation = (1 - unknown) * second / torch.outer(scale, scale) + (unknown + 1e-2) * identity
    values, vectors = torch.linalg.eigh(correlation)
    expected = -vectors @ torch.diag(values**-0.5) @ vectors.T @ (gradients[-1] / scale)
    torch.testing.assert_close(x.detach() - before, expected, rtol=1e-9, atol=1e-12)


def across(shrink, gradients, size=20):
    """How much farther than Adam's the last step goes where the gradients hardly vary."""
    ours, adam = zeros(size), zeros(size)
    pair = (
        (ours, FullMatrixAdam([ours], lr=1.0, shrink=shrink)),
        (adam, torch.optim.Adam([adam], lr=1.0, betas=(0.9, 0.98))),
    )
    for shared, single in zip(randn(gradients), randn(gradients, size, seed=1), strict=True):
        moved = []
        for parameter, optimizer in pair:
            before = parameter.detach().clone()
            parameter.grad = shared + 1e-3 * single
            optimizer.step()
            step = parameter.detach() - before
            moved.append((step - step.mean()).norm().item())
    return moved[0] / moved[1]


def test_with_shrinkage_steps_in_flat_directions_grow_with_the_gradients_seen():
    assert 1 < across(True, 4) <= (24 / 20) ** 0.5 + 1e-6
    assert 2 < across(True, 80) <= (100 / 20) ** 0.5 + 1e-6
    assert across(False, 4) > 10


def test_shrinkage_stays_with_the_state():
    x = zeros(3)
    shrinking, other = FullMatrixAdam([x], shrink=True), FullMatrixAdam([x])
    x.grad = torch.ones_like(x)
    shrinking.step()
    state = {0: dict(shrinking.state_dict()["state"][0])}
    other.load_state_dict({**other.state_dict(), "state": state})
    other.step()
    assert other.state[x]["shrink"] is True


def test_groups_have_their_own_rate_and_share_one_matrix():
    a, b = zeros(2), zeros(2)
    optimizer = FullMatrixAdam([{"params": [a], "lr": 1e-2}, {"params": [b], "lr": 0.0}])
    ((a.sum() - 1) ** 2 + (b.sum() - 1) ** 2).backward()
    optimizer.step()
    assert (a != 0).all()
    assert (b == 0).all()
    assert optimizer.state[a]["second"].shape == (4, 4)


def test_parameters_without_gradient_stay():
    a, b = zeros(2, dtype=torch.float32), zeros(2, dtype=torch.float32)
    optimizer = FullMatrixAdam([a, b], lr=0.1)
    a.sum().backward()
    optimizer.step()
    assert (a != 0).all()
    assert (b == 0).all()
    assert torch.isfinite(a).all()


def test_state_survives_saving():
    def advance(x, optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            (x.square().sum() + x.prod()).backward()
            optimizer.step()

    x = torch.nn.Parameter(torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64))
    optimizer = FullMatrixAdam([x], lr=0.1)
    advance(x, optimizer)
    y = copy.deepcopy(x)
    other = FullMatrixAdam([y], lr=0.1)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    advance(x, optimizer)
    advance(y, other)
    assert torch.equal(x, y)


@pytest.mark.parametrize("settings", [{"lr": -1.0}, {"betas": (0.9, 1.0)}, {"damping": 0.0}])
def test_refuses_settings_out_of_range(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        FullMatrixAdam([zeros(1)], **settings)
