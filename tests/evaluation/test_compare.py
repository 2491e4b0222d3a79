import dataclasses
import math
import os
import threading

import pytest
import torch
from comparison_tools import SCHEDULE, SHAPE, make_denoiser, make_features, network, run_comparison

from gas_ext import GASSampler, GeneralizedSolver
from gas_ext._utils.noise import stacked_noise, to_uint8
from gas_ext._utils.processes import Processes
from gas_ext.evaluation.features import FeatureExtractor
from gas_ext.evaluation.metrics import Reference, feature_statistics, frechet_distance
from gas_ext.solvers.registry import build_solver


def draw(name, steps, seeds, denoiser=None, conditions=None, **options):
    sampler = GASSampler(build_solver(name, SCHEDULE, steps), denoiser or make_denoiser(), **options)
    with torch.no_grad():
        return sampler(stacked_noise(seeds, SHAPE), conditions)


def numbers(comparison):
    """Everything but times."""
    return [
        (cell.label, cell.nfe, {key: found.to_dict() for key, found in cell.numbers.estimates.items()})
        for cell in comparison.cells
    ]


@pytest.fixture(scope="module")
def data():
    features = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    return Reference.from_features("noise", features, make_features().describe())


@pytest.fixture(scope="module")
def comparison(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("comparison")
    return run_comparison(folder, features=make_features(), reference=data, perceptual=True, count=50)


@pytest.mark.slow
def test_cells_come_teacher_first_then_solver_by_solver(comparison):
    assert [(cell.label, cell.kind, cell.nfe) for cell in comparison.cells] == [
        ("teacher", "teacher", 12),
        *((label, "classical", nfe) for label in ("ddim", "dpm++-2") for nfe in (2, 3)),
    ]
    assert comparison.nfes == [2, 3]
    assert comparison.labels == ["ddim", "dpm++-2"]
    assert comparison.seeds == "100-149"


@pytest.mark.slow
def test_distances_are_those_of_the_samples(comparison):
    seeds = range(100, 150)
    teacher = draw("dpm++-3", 12, seeds)
    for cell in comparison.judged:
        gap = (draw(cell.label, cell.nfe, seeds) - teacher).double()
        squares = gap.square().flatten(1).mean(1)
        assert cell.estimate("l1").value == pytest.approx(gap.abs().mean().item(), rel=1e-5)
        assert cell.estimate("l2").value == pytest.approx(squares.mean().item(), rel=1e-5)
        psnr = (10 * (4 / squares).log10()).mean().item()
        assert cell.estimate("psnr").value == pytest.approx(psnr, rel=1e-5)
        assert cell.estimate("perceptual").value > 0


def test_distributions_are_compared_by_their_features(comparison, data):
    embed = make_features()
    seeds = range(100, 150)
    theirs = feature_statistics(embed(draw("dpm++-3", 12, seeds)))
    for cell in comparison.judged:
        own = feature_statistics(embed(draw(cell.label, cell.nfe, seeds)))
        for key, other in (("frechet_to_teacher", theirs), ("frechet_to_data", data.statistics)):
            assert cell.estimate(key).value == pytest.approx(frechet_distance(*own[:2], *other[:2]), abs=1e-6)
            assert len(cell.estimate(key).replicates) == 20
    teacher = comparison.teachers[0]
    assert "frechet_to_teacher" not in teacher.numbers.estimates
    assert teacher.estimate("frechet_to_data").value > 0


def test_replicates_leave_seeds_out_on_both_sides(comparison):
    embed = make_features()
    seeds = [*range(100, 102), *range(105, 150)]  # without the second of 20 groups
    theirs = feature_statistics(embed(draw("dpm++-3", 12, seeds)))
    own = feature_statistics(embed(draw("ddim", 2, seeds)))
    found = comparison.cell("ddim", 2).estimate("frechet_to_teacher").replicates[1]
    assert found == pytest.approx(frechet_distance(*own[:2], *theirs[:2]), rel=1e-5)


def test_kernel_distance_of_pairs_is_the_u_statistic(comparison):
    embed, seeds = make_features(), range(100, 150)
    x, y = embed(draw("ddim", 3, seeds)).double(), embed(draw("dpm++-3", 12, seeds)).double()

    def kernel(a, b):
        return ((a @ b.T) / 4 + 1) ** 3

    terms = kernel(x, x) + kernel(y, y) - kernel(x, y) - kernel(x, y).T
    expected = (terms.sum() - terms.trace()) / (50 * 49)
    assert comparison.cell("ddim", 3).estimate("kid_to_teacher").value == pytest.approx(
        expected.item(), rel=1e-4
    )


def test_record_has_provenance_and_marks(comparison, data):
    record = comparison.cell("ddim", 2).to_dict()["provenance"]
    assert record["teacher"]["extractor"] == make_features().describe()
    assert record["data"]["reference_sha256"] == data.sha256
    assert record["data"]["samples"] == 50
    assert comparison.to_dict()["settings"]["teacher"]["name"] == "toy"
    for nfe in comparison.nfes:
        marks = {cell.label: cell.marks.get("l1") for cell in comparison.judged if cell.nfe == nfe}
        values = {label: comparison.cell(label, nfe).estimate("l1").value for label in marks}
        assert marks[min(values, key=values.get)] == "best"


class Counting:
    """Counts network calls, and stops at one of them."""

    def __init__(self, stop=math.inf):
        self.calls, self.stop = 0, stop

    def __call__(self, x, t, condition):
        self.calls += 1
        if self.calls == self.stop:
            raise KeyboardInterrupt
        return network(x, t, condition)


def count_calls(folder, *args, stop=math.inf, **options):
    function = Counting(stop)
    found = run_comparison(folder, *args, denoiser=make_denoiser(function), **options)
    return found, function.calls  # one call identifies the network, which has no hash of weights


@pytest.mark.slow
def test_existing_results_are_reused(tmp_path):
    options = {"features": make_features(), "count": 300}
    first, calls = count_calls(tmp_path, ["ddim"], [2], **options)
    batches = 15 + 1  # of 20, and a warm-up
    assert calls == 1 + batches * (12 + 2)
    again, calls = count_calls(tmp_path, ["ddim"], [2], **options)
    assert calls == 1
    assert numbers(again) == numbers(first)
    more, calls = count_calls(tmp_path, ["ddim", "dpm++-2"], [2, 3], **options)
    assert calls == 1 + batches * (3 + 2 + 3)
    assert numbers(more)[:2] == numbers(first)


def test_more_seeds_compute_only_the_new_chunks(tmp_path):
    _, calls = count_calls(tmp_path, ["ddim"], [2], count=260)  # one chunk
    assert calls == 1 + (13 + 1) * 14
    more, calls = count_calls(tmp_path, ["ddim"], [2], count=300)
    assert calls == 1 + (2 + 1) * 14  # two batches of 20, and a warm-up
    assert numbers(more) == numbers(run_comparison(tmp_path / "other", ["ddim"], [2], count=300))


@pytest.mark.slow
@pytest.mark.parametrize("stop", [5, 180, 185, 210])
def test_interrupted_run_resumes(tmp_path, stop):
    options = {"features": make_features(), "count": 300}
    with pytest.raises(KeyboardInterrupt):
        count_calls(tmp_path / "stopped", ["ddim"], [2], stop=stop, **options)
    left = [path.name for path in (tmp_path / "stopped").rglob("*") if path.name.startswith(".")]
    assert left == []
    resumed = run_comparison(tmp_path / "stopped", ["ddim"], [2], **options)
    whole = run_comparison(tmp_path / "whole", ["ddim"], [2], **options)
    assert numbers(resumed) == numbers(whole)


@pytest.mark.slow
def test_damaged_files_are_recomputed(tmp_path):
    options = {"features": make_features(), "count": 30, "nfe": [2]}
    before = run_comparison(tmp_path, **options)
    cell, other = (tmp_path / before.cell(label, 2).folder for label in ("ddim", "dpm++-2"))
    (chunk,), (others,), (stored,) = cell.glob("chunk-*"), other.glob("chunk-*"), cell.glob("numbers-*")
    content = chunk.read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    for damaged in (content[:-10], flipped, others.read_bytes()):
        chunk.write_bytes(damaged)
        stored.unlink()
        assert numbers(run_comparison(tmp_path, **options)) == numbers(before)
        assert chunk.read_bytes() != damaged
    for damaged in ('{"nfe": 2', "[]", '{"nfe": 2}', '{"nfe": 2, "estimates": {"l1": 0.5}}', "[" * 10**5):
        stored.write_text(damaged)
        assert numbers(run_comparison(tmp_path, **options)) == numbers(before)


def test_other_settings_are_other_cells(tmp_path):
    """Networks without a hash of weights are identified by an output, also if they need conditions."""

    def scaled(factor):
        return {"denoiser": make_denoiser(lambda x, t, condition: factor * network(x, t, None))}

    def conditional(factor):
        def function(x, t, condition):
            return factor * network(x, t, None) * condition.reshape(-1, 1, 1, 1)

        denoiser = make_denoiser(function, condition_kind="tensor")
        return {"denoiser": denoiser, "conditions": torch.linspace(0.1, 1, 20)}

    folders = {
        run_comparison(tmp_path, ["ddim"], [2], count=20, **options).cells[1].folder
        for options in (
            {},
            {"batch_size": 10},
            {"autocast": torch.bfloat16},
            {"features": make_features()},
            {"t_eps": 0.01},
            scaled(0.5),
            conditional(1.0),
            conditional(0.5),
        )
    }
    assert len(folders) == 8


def test_features_do_not_use_the_autocast_of_the_network(tmp_path):
    seen = set()

    def watching(x, t, condition):
        seen.add(("network", torch.is_autocast_enabled("cpu")))
        return network(x, t, condition)

    def embed(images):
        seen.add(("features", torch.is_autocast_enabled("cpu")))
        return images[:, 0, :2, :2].flatten(1)

    options = {"features": FeatureExtractor("corner", 4, embed), "autocast": torch.bfloat16}
    run_comparison(tmp_path, ["ddim"], [2], 20, denoiser=make_denoiser(watching), **options)
    # The network is also evaluated once without autocast, for its identity.
    assert seen == {("network", True), ("network", False), ("features", False)}


@pytest.mark.slow
def test_several_features_are_measured_from_the_same_samples(tmp_path, data):
    corner = make_features()
    edge = FeatureExtractor("edge", 3, lambda images: images[:, 0, 3, :3])
    options = {"nfe": [2], "reference": data, "perceptual": True}
    both, calls = count_calls(tmp_path / "both", features=[edge, corner], **options)
    assert calls == 1 + (3 + 1) * (12 + 2 + 2)  # no more than with one
    alone = {
        "": run_comparison(tmp_path / "edge", nfe=[2], features=edge),
        "@corner": run_comparison(tmp_path / "corner", features=corner, **options),
    }
    for cell in both.cells:
        expected = {}
        for suffix, comparison in alone.items():
            for key, found in comparison.cell(cell.label, cell.nfe).numbers.estimates.items():
                expected[key if key in ("l1", "l2", "psnr", "perceptual") else key + suffix] = found
        assert cell.numbers.estimates == expected
    cell = both.cell("ddim", 2)
    assert cell.numbers.provenance.keys() == {"teacher", "teacher@corner", "data@corner"}
    assert cell.numbers.provenance["data@corner"]["extractor"] == corner.describe()
    keys = [measure.key for measure in both.measures if measure.name == "frechet"]
    assert keys == ["frechet_to_teacher", "frechet_to_teacher@corner", "frechet_to_data@corner"]
    assert any("frechet_to_data@corner" in it.marks for it in both.judged)


def test_guidance_applies_to_all_solvers(tmp_path):
    def guided(x, t, condition):
        return network(x, t, None) * condition.reshape(-1, 1, 1, 1)

    denoiser = make_denoiser(guided, condition_kind="tensor", unconditional=torch.tensor([0.5]))
    conditions = torch.linspace(0.1, 1, 20)
    options = {
        "seeds": range(100, 120),
        "denoiser": denoiser,
        "conditions": conditions,
        "guidance_scale": 2.0,
    }
    found = run_comparison(tmp_path, ["ddim"], [2], **options)
    expected = (draw("ddim", 2, **options) - draw("dpm++-3", 12, **options)).abs().mean().item()
    assert found.cell("ddim", 2).estimate("l1").value == pytest.approx(expected, rel=1e-5)


def test_latents_are_decoded_for_images_and_features(tmp_path):
    def decode(samples):
        return (samples.repeat_interleave(2, -1) / 2).expand(-1, 3, -1, -1)

    def embed(images):
        seen.append(images.shape)
        return images[:, 0, :2, :2].flatten(1)

    seen = []
    options = {"denoiser": make_denoiser(decode=decode), "features": FeatureExtractor("corner", 4, embed)}
    found = run_comparison(tmp_path, ["ddim"], [2], 40, **options).cell("ddim", 2)
    assert set(seen) == {(20, 3, 4, 8)}
    gap = (draw("ddim", 2, range(100, 140)) - draw("dpm++-3", 12, range(100, 140))).double()
    assert found.estimate("l1").value == pytest.approx(gap.abs().mean().item(), rel=1e-5)
    psnr = (10 * (4 / (gap / 2).square().flatten(1).mean(1)).log10()).mean().item()
    assert found.estimate("psnr").value == pytest.approx(psnr, rel=1e-5)
    assert found.shown.shape == (12, 3, 4, 8)


def test_diverged_solver_loses_only_its_own_numbers(tmp_path):
    bad = build_solver("dpm++-1@1,0.77,0.001", SCHEDULE, 2)

    def sometimes(x, t, condition):
        return network(x, t, condition) * (math.nan if abs(float(t) - 0.77) < 1e-9 else 1.0)

    options = {"denoiser": make_denoiser(sometimes), "features": make_features()}
    found = run_comparison(tmp_path, {"bad": bad, "ddim": "ddim"}, [2], 40, **options)
    assert found.cell("bad", 2).numbers.estimates == {}
    assert found.cell("ddim", 2).estimate("frechet_to_teacher").value >= 0


def test_teacher_may_depend_on_the_number_of_evaluations(tmp_path):
    found = run_comparison(
        tmp_path, count=20, teacher=lambda steps: build_solver("dpm++-3", SCHEDULE, steps + 1)
    )
    assert [cell.nfe for cell in found.teachers] == [3, 4]
    for cell in found.judged:
        (teacher,) = [it for it in found.teachers if it.folder == cell.teacher]
        assert teacher.nfe == cell.nfe + 1


class TwoProcesses(Processes):
    """Threads in place of processes."""

    def __init__(self, rank, barrier):
        self.rank, self.count, self._barrier = rank, 2, barrier

    def wait(self):
        self._barrier.wait(timeout=60)


@pytest.mark.slow
def test_processes_share_the_chunks_and_return_the_same(tmp_path):
    barrier = threading.Barrier(2)
    settings = {"solvers": ["ddim"], "nfe": [2], "count": 520, "features": make_features()}
    found, calls = {}, {}

    def work(rank):
        function = Counting()
        options = {"denoiser": make_denoiser(function), "processes": TwoProcesses(rank, barrier)}
        found[rank] = run_comparison(tmp_path / "shared", **settings, **options)
        calls[rank] = function.calls

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = run_comparison(tmp_path / "alone", **settings)
    assert numbers(found[0]) == numbers(found[1]) == numbers(alone)
    assert calls[0] == calls[1]  # one chunk of 260 each


def learned_solver(path, **training):
    solver = GeneralizedSolver(SCHEDULE, 2, timesteps="logsnr", prediction_type="sample")
    solver.save(path, teacher={"name": "toy", "weights_hash": ""}, training={"samples": 4, **training})
    return str(path)


def test_training_seeds_of_a_solver_are_rejected(tmp_path):
    recorded = learned_solver(tmp_path / "recorded.safetensors", seeds="90-105")
    unrecorded = learned_solver(tmp_path / "unrecorded.safetensors")
    for path, options in ((recorded, {}), (unrecorded, {"training_seeds": range(105, 200)})):
        with pytest.raises(ValueError, match=r"learned from \d+ of the seeds.* --allow-training-seeds"):
            run_comparison(tmp_path / "c", [path], [2], count=20, **options)
    run_comparison(tmp_path / "c", [recorded], [2], count=20, training_seeds=None)
    run_comparison(tmp_path / "c", [recorded], [2], seeds=range(106, 126), training_seeds=range(200))


# References made with other features than those of the comparisons.
OTHER = Reference.from_features("other", torch.eye(9, 3))
ROUNDED = Reference.from_features(
    "rounded", torch.eye(9, 4), {**make_features().describe(), "quantization": "uint8"}
)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solvers": ["nonsense"]}, "no solver 'nonsense'"),
        ({"solvers": ["runs/gs-{nfe}/solver.safetensors"]}, "gs-2"),
        ({"solvers": []}, "no solvers to compare"),
        ({"denoiser": network}, "is a function, but must be a Denoiser; wrap"),
        ({"seeds": [1, 2, 1]}, "seed occurs twice"),
        ({"seeds": [1]}, "at least 2"),
        ({"count": 10, "features": make_features()}, "at least 20"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"perceptual": True}, "needs features with maps, but the features are: none"),
        ({"nfe": []}, "nfe is empty"),
        ({"groups": 1}, "groups is 1"),
        ({"features": [make_features(), make_features()]}, "Two feature extractors have one name"),
        ({"reference": OTHER}, "'other' has 3 features, which does not fit no features"),
        ({"reference": OTHER, "features": make_features()}, r"does not fit corner \(4\)"),
        ({"reference": ROUNDED, "features": make_features()}, "quantization: 'none' against 'uint8'"),
    ],
)
def test_wrong_arguments_are_rejected_before_anything_is_written(tmp_path, options, message):
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
        run_comparison(tmp_path / "c", **options)
    assert not (tmp_path / "c").exists()


def test_bytes_follow_the_rule_of_the_teacher(tmp_path):
    features = dataclasses.replace(make_features(), quantization="uint8")
    data = Reference.from_features("real", torch.eye(9, 4), features.describe())
    denoiser = make_denoiser()
    denoiser.truncates = True
    options = {"features": features, "reference": data, "count": 20}
    cut = run_comparison(tmp_path / "cut", ["ddim"], [2], denoiser=denoiser, **options).judged[0]
    rounded = run_comparison(tmp_path / "rounded", ["ddim"], [2], **options).judged[0]
    samples = draw("ddim", 2, range(100, 120))
    for cell, truncate, rule in ((cut, True, "uint8-truncated"), (rounded, False, "uint8")):
        pixels = to_uint8(samples, truncate=truncate)
        assert torch.equal(cell.shown, pixels[: len(cell.shown)])
        assert cell.numbers.provenance["data"]["extractor"]["quantization"] == rule
        found = feature_statistics(pixels[:, 0, :2, :2].flatten(1).float())
        expected = frechet_distance(*found[:2], *data.statistics[:2])
        assert cell.estimate("frechet_to_data").value == pytest.approx(expected, rel=1e-5)


def test_unsupported_nfes_are_left_out_and_reported(tmp_path):
    found = run_comparison(tmp_path, ["edm", "ddim"], [2, 3], count=20)
    assert [(it.label, it.nfe) for it in found.left_out] == [("edm", 2)]
    assert "odd" in found.left_out[0].reason
    assert [(cell.label, cell.nfe) for cell in found.judged] == [("edm", 3), ("ddim", 2), ("ddim", 3)]


def test_folder_of_another_report_is_rejected(tmp_path):
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(ValueError, match=r"index\.html exists, but"):
        run_comparison(tmp_path)
    assert os.listdir(tmp_path) == ["index.html"]
