"""Sampling: third-party oracles, exact solutions, dtypes, shapes, compilation, errors."""

import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_networks import VP, labelled, mixture, noise_of, randomize
from test_schedules import SCHEDULES
from torch.utils._python_dispatch import TorchDispatchMode

from gas_ext import GASSampler, GeneralizedSolver, NoiseSchedule


def diffusers_solve(scheduler, network, x, timesteps, sigmas, order):
    """DPM-Solver++ by diffusers' own update formulas, in float64 (its `step` casts to float32)."""
    scheduler.sigmas = sigmas
    outputs: list[torch.Tensor] = []
    for n, t in enumerate(timesteps[:-1]):
        scheduler._step_index = n
        outputs.append(network(x, t, None))
        use = min(n + 1, order)
        if use == 1:
            x = scheduler.dpm_solver_first_order_update(outputs[-1], sample=x)
        elif use == 2:
            x = scheduler.multistep_dpm_solver_second_order_update(outputs[-2:], sample=x)
        else:
            x = scheduler.multistep_dpm_solver_third_order_update(outputs[-3:], sample=x)
    return x


@pytest.mark.parametrize("theory_order", [1, 2, 3])
@pytest.mark.parametrize("spacing", ["uniform", "logsnr"])
@pytest.mark.parametrize("name", ["vp_linear", "vp_discrete", "flow"])
def test_untrained_is_dpm_solver_of_diffusers(name, spacing, theory_order):
    from diffusers import DPMSolverMultistepScheduler

    schedule = SCHEDULES[name]
    scheduler = DPMSolverMultistepScheduler(
        solver_order=theory_order,
        algorithm_type="dpmsolver++",
        prediction_type="sample",
        lower_order_final=False,
        use_flow_sigmas=name == "flow",
    )
    solver = GeneralizedSolver(schedule, 6, theory_order=theory_order, timesteps=spacing)
    times, network, noise = solver.timesteps().detach(), mixture(schedule), noise_of(5, 2)
    sigmas = times if name == "flow" else torch.exp(-schedule.lambda_(times))
    if name == "flow":  # an exact network divides by alpha(1) = 0
        network = smooth_network
    with torch.no_grad():
        found = GASSampler(solver, network, "sample")(noise)
    expected = diffusers_solve(scheduler, network, noise, times, sigmas, theory_order)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def smooth_network(x, t, condition):
    return torch.tanh(x) * (1.0 - 0.5 * t) + 0.1 * torch.cos(3.0 * t)


@pytest.mark.parametrize("theory_order", [1, 2, 3])
def test_untrained_is_edm_dpm_solver_of_diffusers(theory_order):
    from diffusers import EDMDPMSolverMultistepScheduler

    schedule = SCHEDULES["edm"]
    scheduler = EDMDPMSolverMultistepScheduler(
        solver_order=theory_order,
        algorithm_type="dpmsolver++",
        prediction_type="epsilon",
        lower_order_final=False,
    )
    solver = GeneralizedSolver(schedule, 6, t_eps=0.0, theory_order=theory_order)
    times, network, noise = solver.timesteps().detach(), mixture(schedule), noise_of(5, 2)
    with torch.no_grad():
        found = GASSampler(solver, network, "sample")(noise)
    expected = diffusers_solve(scheduler, network, 80.0 * noise, times, schedule.sigma(times), theory_order)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_a_single_image_is_reached_exactly(name, order):
    """With D = mu always, x_N = alpha_N mu + sigma_N / sigma_0 (x_0 - alpha_0 mu) for any steps and order."""
    schedule = SCHEDULES[name]
    solver = GeneralizedSolver(schedule, 5, order)
    sampler = GASSampler(solver, lambda x, t, condition: torch.full_like(x, 0.7), "sample")
    noise = noise_of(3, 4)
    with torch.no_grad():
        found = sampler(noise)
    times = torch.tensor([1.0, 1e-3], dtype=torch.float64)
    (alpha_0, alpha_n), (sigma_0, sigma_n) = schedule.alpha(times), schedule.sigma(times)
    start = schedule.init_noise_sigma * noise
    torch.testing.assert_close(
        found, alpha_n * 0.7 + sigma_n / sigma_0 * (start - alpha_0 * 0.7), rtol=1e-9, atol=1e-10
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_more_steps_converge(name):
    """Second order: the error falls at least threefold when steps double."""
    schedule, noise = SCHEDULES[name], noise_of(4, 2)
    network = smooth_network if schedule.zero_terminal_snr else mixture(schedule)
    results = []
    for steps in (16, 32, 64, 512):
        solver = GeneralizedSolver(schedule, steps, 2, 2e-2, theory_order=2)
        with torch.no_grad():
            results.append(GASSampler(solver, network, "sample")(noise))
    errors = [(result - results[-1]).abs().max().item() for result in results[:-1]]
    assert errors[2] < 0.02
    assert errors[1] < errors[0] / 2
    assert errors[2] < errors[1] / 3


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "flow_prediction"])
def test_prediction_types_agree(prediction_type):
    """The same knowledge in another form gives the same sample."""
    network = mixture(VP)

    def converted(x, t, condition):
        data, alpha, sigma = network(x, t, condition), VP.alpha(t), VP.sigma(t)
        eps = (x - alpha * data) / sigma
        return {"epsilon": eps, "v_prediction": alpha * eps - sigma * data, "flow_prediction": eps - data}[
            prediction_type
        ]

    solver = GeneralizedSolver(VP, 5, timesteps="logsnr")
    with torch.no_grad():
        expected = GASSampler(solver, network, "sample")(noise_of(6, 2))
        found = GASSampler(solver, converted, prediction_type)(noise_of(6, 2))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


# ---- what the sampler passes on


def test_trajectory():
    solver = randomize(GeneralizedSolver(VP, 4), 0, 0.02)
    noise = noise_of(3, 2)
    final, trajectory = GASSampler(solver, mixture(VP))(noise, return_trajectory=True)
    assert (len(trajectory.states), len(trajectory.data)) == (5, 4)
    assert trajectory.states[0] is noise
    assert trajectory.states[-1] is final
    assert torch.equal(trajectory.timesteps, solver.timesteps())


def test_network_sees_states_and_shifted_times():
    solver = randomize(GeneralizedSolver(VP, 4), 0, 0.02)
    seen = []

    def network(x, t, condition):
        seen.append((x, t, condition))
        return mixture(VP)(x, t, condition)

    _, trajectory = GASSampler(solver, network)(noise_of(3, 2), "anything", return_trajectory=True)
    for n, (x, t, condition) in enumerate(seen):
        assert x is trajectory.states[n]
        assert (t.dtype, t.shape) == (torch.float64, ())
        assert t == solver.evaluation_timesteps()[n]
        assert condition == "anything"


class Updates(TorchDispatchMode):
    """Lists the numbers of history tensors and of coefficients of each fused update."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.gas_ext.fused_update.default:
            self.calls.append((len(args[0]), len(args[2])))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("order", [1, 2, 4])
def test_one_fused_update_per_step_with_active_terms_only(order, recorded):
    with torch.set_grad_enabled(recorded), Updates() as updates:
        GASSampler(GeneralizedSolver(VP, 4, order), mixture(VP))(noise_of(3, 2))
    active = [min(n + 1, order) for n in range(4)]
    assert updates.calls == [(2 * k - 1, 5 + 2 * k - 1) for k in active]


def test_gradients_reach_noise_network_and_solver():
    solver = randomize(GeneralizedSolver(VP, 3, prediction_type="sample"), 0, 0.02)
    gain = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    network, noise = mixture(VP), noise_of(3, 2).requires_grad_()
    GASSampler(solver, lambda x, t, c: gain * network(x, t, c))(noise).sum().backward()
    for tensor in (gain, noise, *solver.parameters()):
        assert bool((tensor.grad != 0).any())


def test_no_grad_costs_no_graph():
    solver = GeneralizedSolver(VP, 3)
    with torch.no_grad():
        assert not GASSampler(solver, mixture(VP))(noise_of(3, 2)).requires_grad


def test_gradcheck_of_a_whole_solve():
    solver = randomize(GeneralizedSolver(VP, 3, timesteps="quadratic"), 3, 0.05)
    sampler = GASSampler(solver, mixture(VP))
    names = [f"solver.{name}" for name, _ in solver.named_parameters()]
    noise = noise_of(2, 2)

    def solve(*values):
        return torch.func.functional_call(sampler, dict(zip(names, values, strict=True)), (noise,))

    values = tuple(parameter.detach().clone().requires_grad_() for parameter in solver.parameters())
    assert torch.autograd.gradcheck(solve, values, eps=1e-6, atol=1e-6, rtol=1e-4)


# ---- dtypes, shapes, compilation


@given(
    st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
    st.lists(st.integers(0, 3), min_size=1, max_size=5),
    st.integers(1, 5),
    st.booleans(),
)
@settings(max_examples=60)
def test_any_dtype_and_shape(dtype, shape, steps, guided):
    solver = GeneralizedSolver(VP, steps, timesteps="logsnr")
    conditions = (
        (torch.ones(shape[0], *[1] * (len(shape) - 1)), torch.zeros(1)) if guided else (torch.tensor(0.5),)
    )

    def network(x, t, condition):
        assert x.dtype == dtype
        return labelled(x, t, condition.to(x.dtype)).to(x.dtype)

    sampler = GASSampler(solver, network, "sample", 2.0 if guided else None)
    noise = noise_of(*shape)
    with torch.no_grad():
        found, trajectory = sampler(noise.to(dtype), *conditions, return_trajectory=True)
    assert found.shape == noise.shape
    assert all(tensor.dtype == dtype for tensor in (*trajectory.states, *trajectory.data))
    assert bool(torch.isfinite(found).all())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-5), (torch.bfloat16, 0.1)])
def test_low_precision_is_near_float64(dtype, bound):
    solver = GeneralizedSolver(VP, 4, timesteps="logsnr")
    noise = noise_of(8, 2, dtype=dtype)
    with torch.no_grad():
        found = GASSampler(solver, mixture(VP, dtype))(noise)
        expected = GASSampler(solver, mixture(VP))(noise.double())
    assert (found - expected).abs().max() < bound


def test_autocast_leaves_states_and_coefficients_alone():
    layer = torch.nn.Linear(2, 2)
    seen = []

    def network(x, t, condition):
        seen.append(layer(x))
        return seen[-1]

    solver = GeneralizedSolver(VP, 3, timesteps="logsnr")
    sampler = GASSampler(solver, network, "sample")
    expected = solver.coefficients("sample")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, trajectory = sampler(noise_of(4, 2, dtype=torch.float32), return_trajectory=True)
        rows = sampler.coefficients().rows
    assert {output.dtype for output in seen} == {torch.bfloat16}
    assert {state.dtype for state in trajectory.states} == {torch.float32}
    assert found.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(rows, expected.rows, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "guided"), [("vp_linear", True), ("vp_zero_terminal", False), ("flow", False)]
)
def test_compiles_without_graph_breaks(name, guided):
    solver = randomize(GeneralizedSolver(SCHEDULES[name], 2), 0, 0.01)
    sampler = GASSampler(solver, labelled, "sample", 2.0 if guided else None)
    inputs = (noise_of(2, 3), torch.ones(2, 1), torch.zeros(1, 1))
    torch.compiler.reset()
    compiled = torch.compile(sampler, fullgraph=True, backend="aot_eager")
    results = []
    for run in (sampler, compiled):
        out = run(*inputs)
        results.append((out, *torch.autograd.grad(out.sum(), list(solver.parameters()))))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_gradients_are_finite_from_the_start(name):
    """Also where lambda(1) = -inf."""
    schedule = SCHEDULES[name]
    solver = GeneralizedSolver(schedule, 4)
    GASSampler(solver, smooth_network, "v_prediction")(noise_of(3, 2)).sum().backward()
    for parameter in solver.parameters():
        assert bool(torch.isfinite(parameter.grad).all())
        assert bool((parameter.grad != 0).any())


# ---- errors


def sample(function=labelled, noise=None, schedule=VP, prediction_type=None):
    return GASSampler(GeneralizedSolver(schedule, 2), function, prediction_type)(
        noise_of(2, 3) if noise is None else noise
    )


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: sample(noise=torch.zeros(2, 3, dtype=torch.int64)), TypeError, "int64"),
        (lambda: sample(noise=np.zeros((2, 3))), TypeError, "ndarray, but must be a tensor"),
        (lambda: sample(noise=torch.zeros(())), ValueError, "batch dimension"),
        (lambda: sample(noise=torch.zeros(2, 3, device="meta")), ValueError, "meta"),
        (lambda: sample(lambda x, t, c: x[:, :1]), ValueError, r"\(2, 1\) for an input of shape \(2, 3\)"),
        # Networks of diffusers return an object with `.sample`, or a tuple.
        (lambda: sample(lambda x, t, c: (x,)), TypeError, r"must return a tensor; .*\.sample"),
        (lambda: sample(lambda x, t, c: SimpleNamespace(sample=x)), TypeError, r"must return a tensor;"),
        (
            lambda: GASSampler(labelled, GeneralizedSolver(VP, 2)),
            TypeError,
            r"\(solver, denoiser\)",
        ),
        (lambda: GASSampler(GeneralizedSolver(VP, 2), "unet"), TypeError, r"\(solver, denoiser\)"),
        (lambda: GASSampler(GeneralizedSolver(VP, 2), None), TypeError, r"\(solver, denoiser\)"),
        (lambda: sample(schedule=SCHEDULES["flow"], prediction_type="epsilon"), ValueError, "alpha = 0"),
        (lambda: GASSampler.from_pretrained("imagenet"), ValueError, "no pretrained sampler 'imagenet'"),
    ],
)
def test_errors_name_the_cause(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("order", [1, 2])
def test_states_that_no_step_uses_are_released(order):
    alive = []
    seen = []

    def network(x, t, condition):
        seen.append(weakref.ref(x))
        alive.append(sum(state() is not None for state in seen))
        return 0.5 * x

    with torch.no_grad():
        GASSampler(GeneralizedSolver(VP, 8, order), network)(noise_of(2, 3))
    assert alive[-1] <= order + 1  # the caller holds the noise


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("guided", [False, True])
def test_nothing_depends_on_the_device_or_on_values(name, guided):
    """On the meta device a value read on the host, or a tensor left on the CPU, is an error."""
    solver = GeneralizedSolver(SCHEDULES[name], 4).to("meta")
    sampler = GASSampler(solver, lambda x, t, condition: x * t, "v_prediction", 2.0 if guided else None)
    condition = torch.ones(2, 1, device="meta")
    found, trajectory = sampler(torch.ones(2, 3, device="meta"), condition, condition, return_trajectory=True)
    assert found.device.type == trajectory.timesteps.device.type == "meta"


def test_pretrained_demo(tmp_path, monkeypatch):
    """The embedded teacher with a solver made for it; one made for other weights is refused."""
    from gas_ext.teachers import demo

    teacher = demo.load_demo_teacher()
    solver = GeneralizedSolver(teacher.schedule, 2, prediction_type="sample", timesteps="logsnr")
    monkeypatch.setattr(demo, "WEIGHTS", tmp_path)
    monkeypatch.setattr(demo, "load_demo_teacher", lambda device: teacher)
    solver.save(tmp_path / "solver.safetensors", teacher={"weights_hash": teacher.weights_hash})
    sampler = GASSampler.from_pretrained("demo")
    with torch.no_grad():
        images = sampler(noise_of(2, *teacher.sample_shape, dtype=torch.float32), torch.tensor([0, 9]))
    assert images.shape == (2, 1, 32, 32)
    assert images.abs().max() < 2.0
    solver.save(tmp_path / "solver.safetensors", teacher={"weights_hash": "another"})
    with pytest.raises(ValueError, match="weights_hash"):
        GASSampler.from_pretrained("demo")


@pytest.mark.parametrize("guidance_scale", [None, 3.0])
def test_recomputation_gives_the_same_gradients(guidance_scale):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 5)).double()

    def denoiser(x, t, condition):
        return network(torch.cat([x, (t + condition).expand(len(x), 1)], dim=1))

    noise = torch.randn(3, 5, dtype=torch.float64)
    conditions = [torch.full((3, 1), 0.2).double(), torch.zeros(3, 1).double()]
    gradients = []
    for recompute in (False, True):
        solver = GeneralizedSolver(NoiseSchedule.vp_linear(), steps=4).double()
        sampler = GASSampler(solver, denoiser, "sample", guidance_scale, recompute=recompute)
        x = noise.clone().requires_grad_()
        sampler(x, *conditions).square().mean().backward()
        gradients.append([x.grad, *(parameter.grad for parameter in solver.parameters())])
    for ours, plain in zip(*reversed(gradients), strict=True):
        assert (ours - plain).abs().max() <= 1e-12


def test_recomputation_saves_no_activations():
    layer = torch.nn.Linear(1000, 1000)
    saved = []
    for recompute in (False, True):
        solver = GeneralizedSolver(NoiseSchedule.vp_linear(), steps=6)
        sampler = GASSampler(solver, lambda x, t, c: layer(torch.tanh(layer(x))), recompute=recompute)
        sizes = {}

        def keep(tensor, sizes=sizes):
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            sampler(torch.randn(50, 1000))
        saved.append(sum(sizes.values()))
    assert saved[1] < 0.75 * saved[0]


def test_only_calls_that_returned_are_counted():
    def fails(x, t, condition):
        if sampler.evaluations == 2:
            raise ArithmeticError
        return x

    sampler = GASSampler(GeneralizedSolver(VP, 4), fails)
    with pytest.raises(ArithmeticError), torch.no_grad():
        sampler(noise_of(3, 2))
    assert sampler.evaluations == 2
