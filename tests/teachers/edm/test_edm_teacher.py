"""EDM networks as teachers: shapes, labels, gradients, folders, solves."""

import pickle

import pytest
import torch
from edm_snapshots import SONG

from gas_ext import GASSampler, GeneralizedSolver, NoiseSchedule
from gas_ext.configs import load_config
from gas_ext.solvers import HeunSolver
from gas_ext.teachers.edm import EDMTeacher, load_edm_snapshot
from gas_ext.teachers.edm.teacher import build_teacher
from gas_ext.teachers.folder import load_teacher, save_teacher
from gas_ext.training.baselines import classical_solver

NCSN = {"embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2}
NETWORKS = {
    "ddpmpp": ("EDMPrecond", SONG),
    "vp": ("VPPrecond", {**SONG, "augment_dim": 9}),
    "ncsnpp": ("VEPrecond", {**SONG, **NCSN, "resample_filter": [1, 3, 3, 1]}),
    "skip": ("EDMPrecond", {**SONG, "encoder_type": "skip", "decoder_type": "skip"}),
    "adm": ("EDMPrecond", {**SONG, "network": "DhariwalUNet", "model_channels": 32, "label_dim": 3}),
}


def small(name: str) -> EDMTeacher:
    torch.manual_seed(0)
    return build_teacher(*NETWORKS[name], (3, 8, 8))


@pytest.mark.parametrize(("name", "count"), [("cifar10", 55_733_891), ("ffhq", 61_805_571)])
def test_full_size_networks_have_the_published_parameter_counts(name, count):
    config = load_config(name)
    with torch.device("meta"):
        teacher = build_teacher("EDMPrecond", config.teacher.architecture, config.space.shape)
    assert sum(parameter.numel() for parameter in teacher.parameters()) == count
    assert round(4 * count / 1e6) == config.teacher.megabytes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10", "ffhq"])
def test_full_size_networks_run(name):
    config = load_config(name)
    teacher = build_teacher("EDMPrecond", config.teacher.architecture, config.space.shape)
    x = torch.randn(1, *config.space.shape)
    out = teacher(x, torch.tensor(0.5))
    assert out.shape == x.shape
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_reach_state_and_time(name):
    teacher = small(name)
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    t = torch.tensor([0.3, 0.7], dtype=torch.float64, requires_grad=True)
    teacher(x, t).square().sum().backward()
    assert x.grad.abs().sum() > 0
    assert t.grad.abs().min() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_folder_gives_the_same_teacher(name, tmp_path):
    teacher, x = small(name), torch.randn(2, 3, 8, 8)
    save_teacher(teacher, tmp_path / "teacher", source={"file": "none.pkl"})
    again = load_teacher(tmp_path / "teacher")
    assert torch.equal(again(x, torch.tensor(0.4)), teacher(x, torch.tensor(0.4)))
    assert again.weights_hash == teacher.weights_hash
    assert again.schedule == teacher.schedule
    assert again.num_classes == teacher.num_classes


def test_no_label_is_the_zero_vector():
    teacher = small("adm")
    x, t = torch.randn(2, 3, 8, 8), torch.tensor(0.5)
    none = teacher(x, t, teacher.unconditional_condition())
    assert torch.equal(none, teacher(x, t))
    assert not torch.equal(none, teacher(x, t, torch.tensor([0, 1])))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddpmpp", "vp", "ncsnpp"])
def test_solvers_agree_in_the_limit(name):
    """Heun's method and DPM-Solver++ solve the same ODE in the network's schedule."""
    teacher = small(name).double()
    noise = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t_eps = 0.1
    results = []
    for steps in (30, 60):
        multistep = classical_solver(teacher.schedule, steps, 3, "logsnr", t_eps).solver
        results.append(GASSampler(multistep, teacher)(noise))
    times = classical_solver(teacher.schedule, 40, 1, "logsnr", t_eps).solver.timesteps()
    heun = GASSampler(HeunSolver(teacher.schedule, 81, t_eps, times), teacher)
    _, trajectory = heun(noise, return_trajectory=True)
    reached = trajectory.states[-2]  # before the last step, to sigma = 0
    scale = reached.abs().max()
    assert (results[1] - results[0]).abs().max() < 0.01 * scale
    assert (results[1] - reached).abs().max() < 0.01 * scale


@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp"])
def test_a_learned_solver_trains_through_the_network(name):
    teacher = small(name)
    solver = GeneralizedSolver(teacher.schedule, steps=3)
    GASSampler(solver, teacher)(torch.randn(2, 3, 8, 8)).square().mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in solver.parameters())
    assert solver.timestep_logits.grad.abs().min() > 0


def test_half_precision_network_float32_states():
    teacher = small("ddpmpp")
    x, t = torch.randn(2, 3, 8, 8), torch.tensor(0.5)
    full = teacher(x, t)
    teacher.dtype = torch.bfloat16
    half = teacher(x, t)
    assert half.dtype == torch.float32
    assert 0 < (half - full).abs().max() < 0.1 * full.abs().max()


def test_ve_networks_have_their_own_schedule():
    assert small("ncsnpp").schedule == NoiseSchedule.edm(0.02, 100.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [({"G": 1}, "no network under 'ema'"), ([1], "no network under 'ema'")],
)
def test_other_files_are_refused(content, message, tmp_path):
    path = tmp_path / "other.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_edm_snapshot(path)


def test_a_failed_save_leaves_nothing(tmp_path):
    teacher = small("ddpmpp")
    teacher.architecture = {}
    with pytest.raises(ValueError, match="by hand"):
        save_teacher(teacher, tmp_path / "teacher")
    assert list(tmp_path.iterdir()) == []
