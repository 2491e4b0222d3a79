"""Timesteps of given logits, their gradient, and the inverse, against the reference in float64."""

import pytest
import torch
from golden_data import arrays, note, tensor

from gas_ext.solvers.timesteps import inverse_stick_breaking, stick_breaking

CASES = sorted({key.rsplit("/", 1)[0] for key in arrays("timesteps.npz") if key.endswith("/mu_logit")})


@pytest.mark.parametrize("case", CASES)
def test_times_and_gradient(case, golden_record):
    data = arrays("timesteps.npz")
    logits = tensor(data[f"{case}/mu_logit"]).requires_grad_()
    times = stick_breaking(logits, float(case.split("/")[0]))
    error = (times - tensor(data[f"{case}/f64/t_steps"])).abs().max().item()
    note(golden_record, "timesteps", "f64 times", error, case)
    assert error <= 1e-9
    (torch.arange(1, times.numel() + 1) * times).sum().backward()
    expected = tensor(data[f"{case}/f64/grad_mu_logit_of_weighted_sum"])
    error = (logits.grad - expected).abs().max().item()
    note(golden_record, "timesteps", "f64 gradient", error, case)
    assert error <= 1e-9


@pytest.mark.parametrize("case", CASES)
def test_float32_logits(case, golden_record):
    """The reference computed these in float32, we do in float64: they differ by its rounding."""
    data = arrays("timesteps.npz")
    times = stick_breaking(tensor(data[f"{case}/mu_logit"], torch.float32), float(case.split("/")[0]))
    error = (times - tensor(data[f"{case}/f32/t_steps"])).abs().max().item()
    note(golden_record, "timesteps", "f32 times", error, case)
    assert error <= 5e-7


@pytest.mark.parametrize("case", [case for case in CASES if not case.endswith("extreme")])
def test_inverse(case, golden_record):
    data = arrays("timesteps.npz")
    logits = inverse_stick_breaking(tensor(data[f"{case}/f64/t_steps"]))
    expected = tensor(data[f"{case}/f64/mu_logit_from_inverse"])
    error = (logits - expected).abs().max().item()
    note(golden_record, "timesteps", "f64 inverse", error, case)
    assert error <= 1e-9
