"""Published training checkpoints: their import, what they sample, and the training that made them."""

import numpy as np
import pytest
import torch
from golden_data import GOLDEN, PARAMETERS, arrays, index, network_of, note, schedule_of, tensor

from gas_ext import GASSampler, GeneralizedSolver

NAMES = sorted(str(path.relative_to(GOLDEN))[:-3] for path in GOLDEN.glob("checkpoints/*.pt"))


def load(name: str) -> tuple[GeneralizedSolver, dict, dict]:
    entry = index()["files"][f"{name}.npz"]
    solver = GeneralizedSolver.from_reference_checkpoint(
        GOLDEN / f"{name}.pt", schedule_of(entry), steps=entry["steps"], t_eps=entry["t_eps"]
    )
    return solver, entry, arrays(f"{name}.npz")


def parameters(data: dict, prefix: str, order: int) -> dict[str, torch.Tensor]:
    """Golden parameters under this library's names."""
    found = {key: data[f"{prefix}/{key}"] for key in ("mu_logit", "t_couple")}
    for letter in ("c", "a"):
        found[letter] = np.stack([data[f"{prefix}/{letter}{i + 1}_diff"] for i in range(order)])
    return {name: torch.from_numpy(found[key]) for name, key in PARAMETERS.items()}


def sampler_of(solver: GeneralizedSolver, entry: dict, data: dict) -> tuple[GASSampler, tuple]:
    """A float32 sampler with the checkpoint's toy network, and the conditions of its samples."""
    guided = entry["kind"] == "cfg"
    tag = "eps_4" if guided else "gm_4x8x8"
    network, prediction_type = network_of(tag, solver.schedule, torch.float32)
    labels = [*data["labels"].tolist(), 1000] if guided else []
    j = torch.arange(1, 9, dtype=torch.float64)
    contexts = [torch.sin(0.1 * (label + 1) * j).float()[None, None] for label in labels]
    conditions = (torch.cat(contexts[:-1]), contexts[-1]) if guided else ()
    return GASSampler(solver, network, prediction_type, 7.5 if guided else None), conditions


@pytest.mark.parametrize("name", NAMES)
def test_import_is_bit_exact(name):
    solver, entry, data = load(name)
    assert solver.order == entry["order"]
    for key, expected in parameters(data, "ema", entry["order"]).items():
        assert torch.equal(solver.get_parameter(key).detach(), expected), key


@pytest.mark.parametrize("name", NAMES)
def test_sample(name, golden_record):
    """The stored sample is a float32 run of the reference: as close as such runs are to float64 ones."""
    solver, entry, data = load(name)
    sampler, conditions = sampler_of(solver, entry, data)
    with torch.no_grad():
        found = sampler(tensor(data["batch0/noise"], torch.float32), *conditions)
    error = (solver.timesteps() - tensor(data["ema_timesteps"])).abs().max().item()
    note(golden_record, "checkpoints", "f32 times", error, name)
    assert error <= 2e-7
    expected = torch.from_numpy(data["ema_sample_of_batch0"])
    error = ((found - expected).abs().max() / expected.abs().max()).item()
    family = f"{entry['kind']} t_eps={entry['t_eps']} theory"
    floor = index()["f32_vs_f64_of_the_reference"][family]["final_rel_to_max"]
    note(golden_record, "checkpoints", "f32 sample / floor", error / floor, name)
    assert error <= floor


@pytest.mark.parametrize("name", NAMES)
def test_training_steps(name, golden_record):
    """Three iterations of Adam with clipping from the stored start reach the stored parameters."""
    solver, entry, data = load(name)
    for key, value in parameters(data, "init", entry["order"]).items():
        solver.get_parameter(key).data = value.clone()
    sampler, conditions = sampler_of(solver, entry, data)
    optimizer = torch.optim.Adam(solver.parameters(), lr=entry["lr"])
    for step in range(3):
        noise, target = (torch.from_numpy(data[f"batch{step}/{key}"]) for key in ("noise", "target"))
        loss = (sampler(noise, *conditions) - target).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(solver.parameters(), 1.0)
        optimizer.step()
        assert loss.item() == pytest.approx(data["loss_total"][step], rel=2e-3)
        assert norm.item() == pytest.approx(data["grad_norm_preclip"][step], rel=2e-3)
        for key, expected in parameters(data, f"after_step{step + 1}", entry["order"]).items():
            error = (solver.get_parameter(key).detach() - expected).abs().max().item()
            note(golden_record, "checkpoints", f"f32 after step {step + 1}", error, f"{name} {key}")
            assert error <= 1e-4, key  # a tenth of one Adam step


@pytest.mark.parametrize("name", NAMES)
def test_export_equals_the_import(name, tmp_path):
    solver, entry, _ = load(name)
    path = tmp_path / "student.pt"
    solver.save_reference_checkpoint(path, step=3, ema_decay=0.999)
    again = GeneralizedSolver.from_reference_checkpoint(
        path, solver.schedule, steps=entry["steps"], t_eps=entry["t_eps"]
    )
    for key, value in solver.named_parameters():
        assert torch.equal(again.get_parameter(key), value), key
    ours, theirs = (torch.load(file, weights_only=True) for file in (path, GOLDEN / f"{name}.pt"))
    assert ours.keys() == theirs.keys()
    assert ours["ema"].keys() == theirs["ema"].keys()
    assert ours["step"] == theirs["step"]
    for a, b in zip(ours["ema"]["shadow_params"], theirs["ema"]["shadow_params"], strict=True):
        assert torch.equal(a, b)
    assert [type(p) for p in ours["model"]] == [type(p) for p in theirs["model"]]
