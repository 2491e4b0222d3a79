"""Timesteps of given logits, their gradient, and the inverse, against the reference in float64."""

import pytest
import torch
from golden_data import arrays, note, tensor

from gas_ext.solvers.timesteps import inverse_stick_breaking, stick_breaking

DATA = arrays("timesteps.npz")
CASES = sorted({key.rsplit("/", 1)[0] for key in DATA if key.endswith("/mu_logit")})


def compare(golden_record, found, expected, quantity, case, tolerance=1e-9):
    error = (found - tensor(expected)).abs().max().item()
    note(golden_record, "timesteps", quantity, error, case)
    assert error <= tolerance


@pytest.mark.parametrize("case", CASES)
def test_times_and_gradient(case, golden_record):
    logits = tensor(DATA[f"{case}/mu_logit"]).requires_grad_()
    times = stick_breaking(logits, float(case.split("/")[0]))
    compare(golden_record, times, DATA[f"{case}/f64/t_steps"], "f64 times", case)
    (torch.arange(1, times.numel() + 1) * times).sum().backward()
    expected = DATA[f"{case}/f64/grad_mu_logit_of_weighted_sum"]
    compare(golden_record, logits.grad, expected, "f64 gradient", case)


@pytest.mark.parametrize("case", CASES)
def test_float32_logits(case, golden_record):
    """The reference computes these in float32, we in float64: they differ by its rounding."""
    times = stick_breaking(tensor(DATA[f"{case}/mu_logit"], torch.float32), float(case.split("/")[0]))
    compare(golden_record, times, DATA[f"{case}/f32/t_steps"], "f32 times", case, 5e-7)


@pytest.mark.parametrize("case", [case for case in CASES if not case.endswith("extreme")])
def test_inverse(case, golden_record):
    logits = inverse_stick_breaking(tensor(DATA[f"{case}/f64/t_steps"]))
    compare(golden_record, logits, DATA[f"{case}/f64/mu_logit_from_inverse"], "f64 inverse", case)
