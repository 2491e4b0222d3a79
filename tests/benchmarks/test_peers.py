"""The peer computes what the public code computes: its solves match the golden data."""

import pytest
import torch
from benchmark_modules import peers
from golden_data import arrays, index, knots, network_of, schedule_of, solver_cases, tensor

CASES = [
    (name, case)
    for name, case in solver_cases()
    if index()["files"][name]["cases"][case]["use_theory_coef"] and index()["files"][name]["kind"] != "cfg"
]


def log_alpha_of(entry):
    if entry["kind"] == "linear":
        schedule = schedule_of(entry)
        return peers.linear_log_alpha(schedule.beta_0, schedule.beta_1)
    variant = "f64" if entry.get("f64_knots", "").startswith("float64") else "f32"
    return peers.discrete_log_alpha(*knots("ldm", variant).knots(torch.device("cpu")))


def solve(name, case, dtype):
    entry, data = index()["files"][name], arrays(name)
    schedule = schedule_of(entry)
    network, prediction_type = network_of(entry["toy_network"].split(",")[0], schedule, dtype)

    def noise_prediction(x, t):
        output = network(x, t, None)
        if prediction_type == "epsilon":
            return output
        return ((x - schedule.alpha(t) * output) / schedule.sigma(t)).to(x.dtype)

    logits, offsets, c, a = (
        tensor(data[f"{case}/{key}"], dtype) for key in ("mu_logit", "t_couple", "c", "a")
    )
    times = peers.stick_breaking_times(logits, entry["t_eps"])
    parameters = peers.Parameters(times, offsets, c, a)
    return parameters, peers.unfused_solve(
        log_alpha_of(entry), parameters, noise_prediction, tensor(data["noise"], dtype)
    )


def test_there_are_cases_of_both_schedules():
    assert {index()["files"][name]["kind"] for name, _ in CASES} == {"linear", "discrete"}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "case"), CASES)
def test_golden_solves(name, case):
    data = arrays(name)
    parameters, (states, predictions) = solve(name, case, torch.float64)
    found = {"t": parameters.timesteps, "x": states[1:], "D": predictions, "final": states[-1]}
    compared = 0
    for key, value in found.items():
        expected = data.get(f"{case}/f64/{key}")
        if expected is not None:
            value = torch.stack(value) if isinstance(value, list) else value
            torch.testing.assert_close(value, tensor(expected), rtol=0, atol=1e-9)
            compared += 1
    assert compared >= 2
