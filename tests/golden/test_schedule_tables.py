"""Schedules against the tables of the reference (float64), NaN where the reference has NaN."""

import pytest
import torch
from golden_data import arrays, index, knots, note, tensor

from gas_ext import NoiseSchedule

CASES = index()["files"]["schedules.npz"]["cases"]
LINEAR = [name for name, case in CASES.items() if case["schedule"] == "linear"]
DISCRETE = [name for name, case in CASES.items() if case["schedule"] == "discrete"]


def check(schedule: NoiseSchedule, prefix: str, golden_record) -> None:
    data = arrays("schedules.npz")
    t, lam = tensor(data["t"]), tensor(data["lam"])
    found = {
        "log_alpha": schedule.log_alpha(t),
        "alpha": schedule.alpha(t),
        "sigma": schedule.sigma(t),
        "lambda": schedule.lambda_(t),
        "inverse_lambda": schedule.inverse_lambda(lam),
        "edm_sigma": torch.exp(-schedule.lambda_(t)),
        "edm_s": torch.where(schedule.sigma(t).isnan(), torch.nan, schedule.alpha(t)),
    }
    for key, value in found.items():
        expected = data.get(f"{prefix}/{key}")
        if expected is None:
            assert key.startswith("edm_")  # only where there is an EDM network
            continue
        expected = tensor(expected)
        assert torch.equal(value.isnan(), expected.isnan()), key
        error = ((value - expected).abs() / expected.abs().clamp(min=1.0)).nan_to_num(0.0).max().item()
        note(golden_record, "schedules", prefix.split("_")[0], error, f"{prefix} {key}")
        assert error <= 1e-9, key


@pytest.mark.parametrize("name", LINEAR)
def test_linear(name, golden_record):
    case = CASES[name]
    schedule = NoiseSchedule.vp_from_edm(case["net_sigma_min"], float(case["net_sigma_max"]), case["t_eps"])
    record = schedule.to_dict()
    assert record["beta_0"] == pytest.approx(case["beta_0"], abs=1e-9)
    assert record["beta_1"] == pytest.approx(case["beta_1"], abs=1e-9)
    check(schedule, f"{name}/f64", golden_record)


@pytest.mark.parametrize("name", DISCRETE)
@pytest.mark.parametrize(("tag", "variant"), [("f64mix", "f32"), ("f64", "f64")])
def test_discrete(name, tag, variant, golden_record):
    check(knots(name.removeprefix("discrete_"), variant), f"{name}/{tag}", golden_record)


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_from_alphas_cumprod(name):
    """The stored times are a float32 linspace; ours are exact, which moves lambda by no more than that."""
    data = arrays("schedules.npz")
    schedule = NoiseSchedule.vp_discrete(data[f"{name}/alphas_cumprod_f64"])
    t = tensor(data["t"])
    inside = (t > 1e-3) & (t <= 1.0)
    expected = tensor(data[f"{name}/f64/lambda"])[inside]
    torch.testing.assert_close(schedule.lambda_(t[inside]), expected, rtol=1e-5, atol=1e-6)
