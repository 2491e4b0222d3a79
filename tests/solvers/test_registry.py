"""Solvers by name."""

import subprocess
import sys
from typing import get_args

import pytest
import torch
from multistep_tools import SCHEDULE as SD

from gas_ext import GASSampler, GeneralizedSolver, NoiseSchedule
from gas_ext.solvers import DPMSolver, HeunSolver, UniPCSolver, registry, timesteps

VP = NoiseSchedule.vp_linear()


def evaluations(solver):
    """Sample with a network that counts."""
    sampler = GASSampler(solver, lambda x, t, condition: 0.5 * x, "sample")
    assert torch.isfinite(sampler(torch.ones(2, 3, dtype=torch.float64))).all()
    return sampler.evaluations


@pytest.mark.parametrize("name", registry.names())
def test_every_name_makes_the_requested_evaluations(name):
    for steps in (3, 5):
        solver = registry.build_solver(name, VP, steps, 1e-2)
        assert evaluations(solver) == steps == solver.steps
        assert solver.t_eps == pytest.approx(1e-2)


def test_all_names():
    names = registry.names()
    for family, orders in (("dpm++", 3), ("deis", 3), ("ipndm", 4)):
        assert {f"{family}-{order}" for order in range(1, orders + 1)} <= set(names)
    assert {f"unipc-{order}-{bh}" for order in (1, 2, 3, 4) for bh in ("bh1", "bh2")} <= set(names)
    assert {"euler", "ddim", "heun", "edm", "dpm++-3-lower", "unip-2-bh2"} <= set(names)
    assert len({registry.display_name(name) for name in names}) == len(names)
    assert list(registry.SPACING_TITLES) == [*timesteps.SPACINGS, "gits"]
    assert tuple(registry.SPACING_TITLES) == get_args(registry.SpacingName)


def test_names_are_listed_without_torch():
    code = (
        "import sys; from gas_ext.solvers.registry import names; names(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("spacing", ["uniform", "quadratic", "logsnr", "edm"])
def test_spacings(spacing):
    times = registry.build_solver(f"deis-2@{spacing}", VP, 4, 1e-3).timesteps()
    assert torch.equal(times, timesteps.spaced_timesteps(VP, 4, 1e-3, spacing))


def test_gits_and_a_list_have_their_own_times():
    assert registry.build_solver("ipndm-2@gits", SD, 5).timesteps()[1].item() == pytest.approx(
        0.7669, abs=1e-4
    )
    solver = registry.build_solver("unipc-2@1,0.5,0.25", VP, 2, 1e-3)
    assert (solver.timesteps().tolist(), solver.t_eps) == ([1.0, 0.5, 0.25], 0.25)


def test_names_mean_what_they_say():
    solver = registry.build_solver("unipc-2-bh2", VP, 4)
    assert isinstance(solver, UniPCSolver)
    assert (solver.order, solver.variant, solver.corrector) == (2, "bh2", True)
    assert not registry.build_solver("unip-2", VP, 4).corrector
    euler, ddim = (registry.build_solver(f"{name}@edm", VP, 4) for name in ("euler", "ddim"))
    assert isinstance(euler, DPMSolver)
    assert all(torch.equal(a, b) for a, b in zip(euler.weights(), ddim.weights(), strict=True))
    assert registry.canonical_name("unipc-3@edm") == "unipc-3-bh2@edm"
    assert registry.build_solver("dpm++-3-lower", VP, 4).lower_order_final


def test_euler_and_dpm_solver_on_flow():
    for name in ("euler", "dpm++-3"):
        assert evaluations(registry.build_solver(name, NoiseSchedule.flow(), 4)) == 4


@pytest.mark.parametrize(("steps", "last"), [(2, "heun"), (3, "euler"), (8, "heun")])
def test_heun_takes_any_number_of_evaluations(steps, last):
    solver = registry.build_solver("heun", VP, steps)
    assert isinstance(solver, HeunSolver)
    assert (evaluations(solver), solver.last) == (steps, last)


def test_edm_sampler():
    schedule = NoiseSchedule.edm(0.002, 80.0)
    found = registry.build_solver("edm", schedule, 35, 0.0).timesteps()
    assert torch.allclose(found, HeunSolver(schedule, 35).timesteps(), atol=1e-12)


@pytest.mark.parametrize("preset", ["gs", "ld3"])
def test_a_file(tmp_path, preset):
    path = str(tmp_path / "demo-4" / "solver.safetensors")
    (tmp_path / "demo-4").mkdir()
    GeneralizedSolver(VP, 4, preset=preset).save(path, training={"objective": "gas"})
    solver = registry.build_solver(path, VP)
    assert isinstance(solver, GeneralizedSolver)
    assert registry.build_solver(path, VP, 4).steps == 4
    assert registry.canonical_name(path) == path
    title = {"gs": "GAS", "ld3": "LD3 with GAS"}[preset]
    assert registry.display_name(path) == f"{title} (demo-4)"
    assert registry.describe(path)["learned"] is True
    with pytest.raises(ValueError, match="makes 4 network evaluations, not 5"):
        registry.build_solver(path, VP, 5)
    with pytest.raises(ValueError, match="made for schedule"):
        registry.build_solver(path, SD, 4)


def test_description():
    assert registry.describe("deis-3@logsnr") == {
        "name": "deis-3@logsnr",
        "solver": "DEIS tAB-3",
        "times": "logSNR",
        "source": "Zhang and Chen 2023",
        "learned": False,
    }


@pytest.mark.parametrize(
    "name",
    ["dpm", "dpm++", "dpm++-4", "unipc-3-bh3", "deis-2@cosine", "deis-2@1", "deis-2@", "deis-2@1,x", ""],
)
def test_unknown_names(name):
    with pytest.raises(
        ValueError, match=r"There is no solver .* expected one of euler, .* gits or a list"
    ) as e:
        registry.build_solver(name, VP, 4)
    assert "\n" not in str(e.value)
    assert "deis-2," in str(e.value)


@pytest.mark.parametrize(
    ("name", "steps", "message"),
    [
        ("edm", 4, "take an odd number, or heun"),
        ("edm", 1, "at least 3, not 1"),
        ("heun", 1, "at least 2"),
        ("unipc-3", None, "give it with steps"),
        ("ipndm-2@gits", 4, "no GITS times for 4 steps"),
        ("ipndm-2@gits", 5, "found for Stable Diffusion"),
        ("deis-2@1,0.5,0.1", 3, "Expected 4 decreasing timesteps"),
    ],
)
def test_impossible_solvers(name, steps, message):
    with pytest.raises(ValueError, match=message):
        registry.build_solver(name, VP, steps)


def test_a_missing_file():
    with pytest.raises(FileNotFoundError, match="no solver file"):
        registry.build_solver("nowhere.safetensors", VP, 4)
