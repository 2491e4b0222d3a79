"""Wrong calls of the Python interface: each raises an error of one sentence from this package."""

import re
import traceback
from pathlib import Path

import numpy
import pytest
import torch

import gas_ext
from gas_ext import (
    Denoiser,
    GASSampler,
    GeneralizedSolver,
    NoiseSchedule,
    ops,
    samples,
    solvers,
    training,
)
from gas_ext._utils import noise as noises
from gas_ext.evaluation import metrics
from gas_ext.solvers import registry, timesteps
from gas_ext.teachers import from_diffusers

PACKAGE = str(Path(gas_ext.__file__).parent)
nan, inf = float("nan"), float("inf")
FLOW, VP = NoiseSchedule.flow(), NoiseSchedule.vp_linear()
NAMED = {"schedule": FLOW, "prediction_type": "sample", "sample_shape": (2, 4)}


def network(x, t, condition):
    return torch.tanh(x)


def solver(**options):
    return GeneralizedSolver(FLOW, 3, **options)


def sampler(function=network, **options):
    return GASSampler(solver(), function, **options)


def denoiser(**options):
    return Denoiser.from_callable(network, **{**NAMED, **options})


def nested():
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


x = torch.ones(3, 2, 4)
row = torch.ones(6, dtype=torch.float64)
labels = denoiser(condition_kind="label", num_classes=10)
guided = GASSampler(solver(), network, guidance_scale=2.0)
demo = GASSampler.from_pretrained("demo")

# By room: one call a line, or a call with a ? and the wrong values for it.
CALLS = {
    "solver": """
        GeneralizedSolver(?, 3) : None | "flow"
        GeneralizedSolver(FLOW, ?) : 0 | -1 | 2.5 | "3" | None | 10**9
        GeneralizedSolver(FLOW, 3, ?) : 0 | 4 | "2"
        GeneralizedSolver(FLOW, 3, t_eps=?) : 0 | 1 | nan | -inf | "0.1" | None
        GeneralizedSolver(FLOW, 3, theory_guidance=?) : "no" | None | 2
        GeneralizedSolver(FLOW, 3, theory_order=?) : 0 | 4 | 2.0
        GeneralizedSolver(FLOW, 3, timesteps=?) : "cosine" | None | 3 | ["a", "b", "c", "d"]
        GeneralizedSolver(FLOW, 3, timesteps=?) : [1.0, 0.5, 0.001] | [1.0, 0.2, 0.5, 0.001]
        GeneralizedSolver(FLOW, 3, timesteps=?) : [1.0, nan, 0.5, 0.001] | [0.9, 0.5, 0.2, 0.001]
        GeneralizedSolver(FLOW, 3, timesteps=?) : [1.0, 0.5, 0.2, 0.1] | []
        GeneralizedSolver(FLOW, 3, prediction_type=?) : "noise" | "epsilon" | 7 | ["sample"]
        GeneralizedSolver(FLOW, 3, guidance_scale=?) : nan | "2" | [1, 2]
        GeneralizedSolver(FLOW, 3, compat=?) : "s4s" | 3
        GeneralizedSolver(FLOW, 3, preset=?) : "gas" | None | ["gs"] | "s4s"
        solver().set_preset(?) : "lightning" | None
        solver().coefficients()
        solver().coefficients(?) : "noise" | "epsilon"
        solver().coefficients("sample", ?) : "2" | nan
        solver().weights(?) : "uniform" | torch.ones(2)
        spaced_timesteps(FLOW, 3, 0.1, "linear")
        spaced_timesteps(FLOW, 3, nan)
        spaced_timesteps(FLOW, 0, 0.1)
        spaced_timesteps(None, 3, 0.1)
        spaced_timesteps(FLOW, "3", 0.1)
        """,
    "solver files": """
        GeneralizedSolver.load(?) : folder / "none.safetensors" | folder | None | 3 | folder / "garbage"
        GeneralizedSolver.load(folder / "solver.safetensors", schedule=?) : VP | "flow"
        GeneralizedSolver.load(folder / "solver.safetensors", prediction_type=?) : "epsilon" | 3
        GeneralizedSolver.load(folder / "solver.safetensors", guidance_scale=?) : 2 | "2"
        GeneralizedSolver.load(folder / "solver.safetensors", weights_hash=?) : "abc" | b"abc"
        solver().save(None)
        solver().save(new, teacher=?) : "demo" | {"name": x}
        solver().save(new, training=?) : [1] | {1j: 1}
        solver().save_reference_checkpoint(None)
        solver(theory_order=2).save_reference_checkpoint(new)
        solver(theory_guidance=False).save_reference_checkpoint(new)
        GeneralizedSolver.from_reference_checkpoint(?, FLOW, 3) : folder / "none.pt" | folder / "garbage"
        GeneralizedSolver.from_reference_checkpoint(folder / "solver.safetensors", FLOW, 3)
        GeneralizedSolver.from_reference_checkpoint(folder / "student.pt", FLOW, ?) : 4 | "3"
        GeneralizedSolver.from_reference_checkpoint(folder / "student.pt", "flow", 3)
        GeneralizedSolver.from_reference_checkpoint(folder / "student.pt", FLOW, 3, 2.0)
        GeneralizedSolver.from_reference_checkpoint(folder / "student.pt", FLOW, 3, theory_guidance="no")
        GeneralizedSolver.from_reference_checkpoint(None, FLOW, 3)
        """,
    "schedules": """
        NoiseSchedule.vp_linear(-1.0)
        NoiseSchedule.vp_linear(?, 1.0) : 3.0 | nan
        NoiseSchedule.vp_linear(0.1, inf)
        NoiseSchedule.vp_linear("a", 1.0)
        NoiseSchedule.vp_linear(None)
        NoiseSchedule.edm(?, 1.0) : 0.0 | 2.0
        NoiseSchedule.edm(0.1, 1.0, ?) : nan | -7
        NoiseSchedule.edm("a")
        NoiseSchedule.vp_from_edm(t_eps=?) : 0.0 | "a"
        NoiseSchedule.vp_from_edm(sigma_min=nan)
        NoiseSchedule.vp_from_edm(sigma_min=90.0, sigma_max=1.0)
        NoiseSchedule.vp_from_edm(sigma_min="a")
        NoiseSchedule.vp_discrete(?) : [] | [0.5] | [0.5, 0.6] | [2.0, 0.5] | [0.5, -0.1] | [0.5, nan]
        NoiseSchedule.vp_discrete(?) : "abc" | None
        NoiseSchedule.from_knots([0.5, 1.0], [-0.1])
        NoiseSchedule.from_knots(?, [-0.1, -0.2]) : [1.0, 0.5] | [0.5, 0.8]
        NoiseSchedule.from_knots([0.5, 1.0], [-0.1, nan])
        NoiseSchedule.from_knots(?, [-0.1, -0.2]) : [0.5, nan] | None
        NoiseSchedule.from_dict(?) : {} | {"family": "cosine"} | {"family": ["flow"]}
        NoiseSchedule.from_dict(?) : {"family": "edm", "rho": 1, "more": 2} | {"family": "vp_knots"}
        NoiseSchedule.from_dict(?) : {"family": "vp_linear", "beta_0": "a"} | "flow" | None
        VP.sigma(?) : "a" | None | 1j
        FLOW.lambda_(None)
        FLOW.inverse_lambda("a")
        """,
    "denoisers": """
        Denoiser.from_callable(3, **NAMED)
        denoiser(schedule="flow")
        denoiser(prediction_type=?) : "noise" | "epsilon"
        denoiser(sample_shape=?) : (0,) | 3 | ("a",) | (2.5,)
        denoiser(condition_kind=?) : "text" | "label"
        denoiser(num_classes=3)
        denoiser(condition_kind="label", num_classes=?) : 0 | "ten" | 2.5
        denoiser(t_eps=?) : 0.0 | "a" | None
        denoiser(guidance_scale=?) : "a" | nan
        denoiser(decode=3)
        denoiser().encode_condition(3)
        denoiser(condition_kind="prompt").encode_condition("a cat")
        labels.encode_condition(?) : [11] | [-1] | [0.5] | ["a"] | [True] | [[1]] | [10**30]
        from_diffusers(?) : 3 | None
        """,
    "sampler": """
        GASSampler(None, network)
        GASSampler(network, solver())
        GASSampler(solver(), None)
        GASSampler(solver, network)
        GASSampler(solver(), network, ?) : "noise" | "epsilon" | 3 | ["sample"]
        GASSampler(solver(prediction_type="sample"), network, "v_prediction")
        GASSampler(GeneralizedSolver(VP, 3), denoiser())
        GASSampler(solver(), denoiser(), "v_prediction")
        GASSampler(solver(guidance_scale=2), network, guidance_scale=3)
        sampler(guidance_scale=?) : nan | inf | "2" | [2.0]
        sampler(recompute="no")
        sampler(cuda_graph="no")
        GASSampler.from_pretrained(?) : "cifar10" | None
        sampler()(?) : None | [1.0, 2.0] | np.ones((2, 4)) | torch.tensor(1.0)
        sampler()(?) : torch.ones(2, 4, dtype=torch.int64) | torch.ones(2, 4, dtype=torch.complex64)
        sampler()(?) : x.to(torch.float8_e4m3fn) | torch.ones(2, 4).to_sparse()
        sampler()(?) : torch.ones(2, 4).to_sparse_csr() | nested()
        sampler()(torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged))
        sampler()(torch.ones(2, 4, device="meta"))
        sampler(lambda x, t, c: None)(x)
        sampler(lambda x, t, c: (x,))(x)
        sampler(lambda x, t, c: Path("x"))(x)
        sampler(lambda x, t, c: x[:1])(x)
        sampler(lambda x, t, c: x[..., :1])(x)
        sampler(lambda x, t, c: x.long())(x)
        sampler(lambda x, t, c: x.to_sparse())(x)
        sampler(lambda x, t, c: x.to(torch.complex64))(x)
        sampler(lambda x, t, c: x.to("meta"))(x)
        sampler(denoiser())(x, 3)
        sampler(denoiser())(torch.ones(2, 4))
        sampler(labels)(x, ?) : [1, 2] | [1, 2, 3, 4] | [1, 2, 11] | "cat"
        demo(?) : torch.ones(2, 3, 32, 32) | torch.ones(2, 1, 28, 28) | torch.ones(1, 32, 32)
        demo(torch.ones(2, 1, 32, 32), ?) : [1, 2, 3] | torch.tensor([1, 2, 3]) | torch.tensor([0.5, 1.0])
        guided(x)
        guided(x, torch.ones(3, 1))
        guided(x, torch.ones(4, 1), torch.ones(1))
        guided(x, torch.ones(3, 1), ?) : torch.ones(2, 1) | 3
        guided(x, {"a": torch.ones(3)}, {"b": torch.ones(1)})
        guided(x, [torch.ones(3)], [torch.ones(1), torch.ones(1)])
        guided(x, "cat", "dog")
        guided(x, object(), object())
        sampler().begin(?) : None | torch.ones(2, 4, dtype=torch.int64) | torch.ones(2, 4).to_sparse()
        sampler(labels).begin(x, [1, 2])
        guided.begin(x)
        sampler().begin(x).advance(None)
        sampler().begin(x).evaluate([1.0])
        """,
    "fused_update": """
        fused_update(?, x, row) : [] | None | 3 | [None] | [np.ones((3, 2, 4))]
        fused_update([x, 3.0], x, torch.ones(7))
        fused_update([x], ?, row) : None | np.ones((3, 2, 4)) | 1.0
        fused_update([x], x, ?) : None | [1.0] * 6 | np.ones(6) | torch.ones(5) | torch.ones(1, 6)
        fused_update([x], x, ?) : torch.ones(6, dtype=torch.float16) | torch.ones(6, dtype=torch.int64)
        fused_update([x], x, ?) : row.to_sparse() | row.to("meta")
        fused_update([x] * 65, x, torch.ones(70))
        fused_update(?, x, torch.ones(7)) : [x, x[:1]] | [x, x.double()] | [x, x.to("meta")]
        fused_update(?, x, row) : [x.long()] | [x.to(torch.complex64)] | [x.to(torch.float8_e4m3fn)]
        fused_update(?, x, row) : [x.to_sparse()] | [nested()]
        fused_update([x], ?, row) : nested() | x.to_sparse() | x.long() | x[:1] | x.to("meta")
        fused_update([x], x, row, guided=?) : True | "yes"
        fused_update([x], x, row, next_input_dtype=?) : torch.int8 | "float32" | float
        fused_update([x], x, row, out=?) : x | (x.clone(),) | (x, x.clone()) | (x.clone(), None)
        fused_update([x], x, row, out=?) : (x.clone(), 3) | 3 | (x.double(), x.clone())
        fused_update([x], x, row, out=?) : (x.clone(), x[:1].clone()) | (x.clone(), x.to_sparse())
        fused_update([x], x, row, out=(x.clone(), x.clone()), next_input_dtype=torch.float32)
        fused_update([torch.tensor(1.0)], torch.tensor(1.0), row, guided=True)
        """,
    "training": """
        train_solver(None, network, x, x)
        train_solver(solver(), None, x, x)
        train_solver(solver(), network, None, x)
        train_solver(solver(), network, x, None)
        train_solver(solver(), network, [1.0], [1.0])
        train_solver(solver(), network, x, x[:1])
        train_solver(solver(), network, x[:0], x[:0])
        train_solver(solver(), network, ?, x.long()) : x.long() | x
        train_solver(solver(), network, x, x.to_sparse())
        train_solver(solver(), network, torch.tensor(1.0), torch.tensor(1.0))
        train_solver(solver(), network, x, x, ?) : torch.ones(2) | {"a": torch.ones(2)} | "cat"
        train_solver(solver(), network, x, x, config={"iterations": 3})
        train_solver(solver(), network, x, x, config=TrainingConfig(iterations=2), loss=?) : 3 | "l3"
        train_solver(solver(), network, x, x, prediction_type="noise")
        train_solver(solver(), network, x, x, guidance_scale=?) : "2" | 2.0
        train_solver(solver(), network, x, x, progress=3)
        train_solver(solver().requires_grad_(False), network, x, x)
        train_solver(solver(), network, nan * x, x, config=TrainingConfig(iterations=12))
        train_solver(solver(), network, x, nan * x, config=TrainingConfig(iterations=12))
        train_solver(solvers.DPMSolver(VP, 3, 1), network, x, x)
        TrainingConfig(iterations=?) : 0 | "a" | 2.5 | None
        TrainingConfig(batch_size=?) : 0 | 2.5
        TrainingConfig(time_rate=?) : -1 | nan | "a"
        TrainingConfig(optimizer=?) : "sgd" | ["adam"]
        TrainingConfig(betas=?) : (2, 3) | 0.9 | (0.9, nan)
        TrainingConfig(schedule="linear")
        TrainingConfig(loss="l3")
        TrainingConfig(clip=?) : 0 | "a" | nan
        TrainingConfig(ema=?) : 1.0 | nan | None
        TrainingConfig(recompute="no")
        TrainingConfig(scale_rates="no")
        TrainingConfig(autocast="float32")
        TrainingConfig(seed=?) : "a" | 0.5
        """,
    "classical": """
        registry.build_solver(?, VP, 4) : "unknown" | "ddim@cosine" | "ddim@1,a" | "ddim@1,0.5"
        registry.build_solver("ddim@1,nan,0.1", VP, 2)
        registry.build_solver("ddim@0.1,1", VP, 1)
        registry.build_solver(?, VP, 4) : "" | None | 3
        registry.build_solver("ddim", VP)
        registry.build_solver("ddim", VP, ?) : 0 | -3 | 2.5 | "4"
        registry.build_solver("ddim", ?, 4) : None | "vp"
        registry.build_solver("ddim", VP, 4, t_eps=?) : 2 | nan | "a"
        registry.build_solver("heun", VP, ?) : 1 | "4" | 4.0
        registry.build_solver("edm", VP, 4)
        registry.build_solver("unipc-3", FLOW, 4)
        registry.build_solver("ddim@gits", VP, 100)
        registry.build_solver(?, VP) : str(folder / "none.safetensors") | str(folder / "solver.safetensors")
        registry.build_solver(str(folder / "solver.safetensors"), FLOW, 5)
        registry.canonical_name(?) : "unknown" | None
        registry.display_name("unknown")
        registry.describe("unknown")
        solvers.DPMSolver(VP, 3, ?) : 4 | "1" | 1.5
        solvers.DPMSolver(VP, 3, 1, timesteps=?) : None | [2.0, 0.5, 0.2, 0.1] | ["a", "b"]
        solvers.UniPCSolver(VP, 3, 3, variant="bh3")
        solvers.HeunSolver(VP, 3, last="midpoint")
        solvers.DEISSolver(FLOW, 3, 1)
        solvers.DPMSolver(VP, 3, 1).coefficients()
        solvers.DPMSolver(VP, 3, 1).coefficients("noise")
        solvers.DPMSolver(VP, 3, 1).coefficients("sample", "2")
        solvers.gits_timesteps(VP, 99)
        """,
    "samples": """
        TeacherSamples.open(?) : folder / "none" | folder | folder / "garbage" | None | 3
        opened.batch(?) : [] | [5] | [-1] | [0.5] | ["a"] | None | 3 | torch.tensor([0.5])
        opened.batch(?) : torch.tensor([True]) | torch.tensor([[0]]) | torch.tensor(0)
        ReferenceDataset(?) : folder / "none.pkl" | folder / "garbage" | None
        generate_samples(None, solver(), range(3), new)
        generate_samples(denoiser(), None, range(3), new)
        generate_samples(denoiser(), solver(), ?, new) : [] | 3 | ["a"]
        generate_samples(denoiser(), solver(), range(3), None)
        generate_samples(denoiser(), solver(), range(3), new, labels=[1])
        generate_samples(labels, solver(), range(3), new, labels=[11])
        generate_samples(labels, solver(), range(3), new, prompts=["a"])
        generate_samples(denoiser(), solver(), range(3), new, batch_size=?) : 0 | "a"
        generate_samples(denoiser(), solver(), range(3), new, shard_size=0)
        generate_samples(denoiser(), solver(), range(3), new, rank=3, world_size=2)
        generate_samples(denoiser(), solver(), range(3), new, guidance_scale="a")
        stacked_noise(?, (2, 4)) : 3 | ["a"]
        stacked_noise([0], ?) : 3 | (-1,)
        stacked_noise([0], (2,), dtype=torch.int64)
        image_grid(x, 2)
        image_grid(torch.ones(1, 1, 2, 2), 0)
        """,
    "metrics": """
        metrics.l1_distance(x, ?) : x[:1] | None
        metrics.l1_distance(np.ones(3), np.ones(3))
        metrics.l1_distance(x[:0], x[:0])
        metrics.l2_distance(x, x[:1])
        metrics.l2_distance(None, x)
        metrics.l1_distances(torch.tensor(1.0), torch.tensor(1.0))
        metrics.psnr(x, x[:1])
        metrics.psnr(x, 2 * x, data_range=?) : 0 | "a" | nan
        metrics.perceptual_distances(x, x[:1], lambda images: [images])
        metrics.feature_statistics(?) : torch.ones(3) | torch.ones(1, 3) | torch.ones(3, 0) | None
        metrics.feature_statistics([[1.0], [2.0]])
        metrics.frechet_distance(torch.ones(2), torch.eye(3), torch.ones(2), torch.eye(2))
        metrics.frechet_distance(?, torch.eye(2), torch.ones(2), torch.eye(2)) : nan * torch.ones(2) | None
        metrics.kernel_distance(torch.ones(1, 2), torch.ones(4, 2))
        metrics.kernel_distance(?, torch.ones(4, 3)) : torch.ones(4, 2) | None
        metrics.kernel_distance(nan * torch.ones(4, 2), torch.ones(4, 2))
        metrics.neighbor_metrics(torch.ones(4, 2), torch.ones(4, 2), k=?) : 4 | 0 | "a" | 1.5
        metrics.neighbor_metrics(nan * torch.ones(4, 2), torch.ones(4, 2), k=1)
        metrics.measure(?, reference) : torch.ones(1, 2) | torch.ones(4, 3)
        metrics.measure(torch.ones(8, 2), reference, groups=?) : 1 | 5
        metrics.measure(torch.ones(8, 2), None)
        metrics.measure(None, reference)
        metrics.merge_statistics([])
        metrics.remove_statistics(reference.statistics, reference.statistics)
        metrics.StreamingStatistics().update(?) : torch.ones(3) | None
        metrics.StreamingStatistics().result()
        metrics.mean_estimate(?) : [] | [1.0, 2.0] | "abc"
        metrics.mean_estimate(torch.ones(4, 2), groups=2)
        metrics.mean_estimate([1.0, 2.0, 3.0], groups="a")
        metrics.jackknife(lambda kept: 1.0, 3, groups=5)
        metrics.Estimate(1.0, (1.0,))
        metrics.Reference.load(?) : folder / "none.npz" | folder / "garbage" | None
        metrics.Reference.from_features("one", torch.ones(1, 2))
        metrics.Reference.from_features("none", None)
        """,
}


def calls_of(room):
    """Yield the calls of a room, one for each wrong value."""
    for line in CALLS[room].strip().splitlines():
        template, _, values = line.strip().partition(" : ")
        for value in values.split(" | "):
            yield template.replace("?", value)


@pytest.fixture(scope="module")
def names(tmp_path_factory) -> dict[str, object]:
    """The names in calls: those of this module, and a folder with a solver, samples and garbage."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "garbage").write_bytes(b"garbage" * 99)
    solver(prediction_type="sample").save(folder / "solver.safetensors")
    solver().save_reference_checkpoint(folder / "student.pt")
    opened = samples.generate_samples(denoiser(), solver(), range(3), folder / "samples")
    reference = metrics.Reference.from_features("eight", torch.arange(16.0).reshape(8, 2))
    found = {"np": numpy, "registry": registry, "solvers": solvers, "metrics": metrics}
    found["from_diffusers"] = from_diffusers
    for module in (noises, ops, samples, solvers, timesteps, training):
        found |= {name: value for name, value in vars(module).items() if callable(value)}
    return {**found, **globals(), "folder": folder, "opened": opened, "reference": reference}


@pytest.mark.slow
@pytest.mark.parametrize(("room", "call"), [(room, call) for room in CALLS for call in calls_of(room)])
def test_a_wrong_call_raises_one_sentence(names, tmp_path, room, call):
    with pytest.raises((TypeError, ValueError, LookupError, RuntimeError, OSError)) as caught:
        eval(call, {**names, "new": tmp_path / "new"})
    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    message = str(caught.value)
    assert last.filename.startswith(PACKAGE), f"{caught.type.__name__} from {last.filename}: {message}"
    assert last.line.startswith("raise "), f"{caught.type.__name__} by {last.line}: {message}"
    assert len(message) > 20
    assert "\n" not in message
    assert not re.search(r"[a-z]{3}\. [A-Z]", message), "one sentence"
    assert not any(tmp_path.iterdir())
