import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from sample_tools import listing, make_denoiser, make_samples, manifest, shard_bytes

from gas_ext import Denoiser, GASSampler, GeneralizedSolver, NoiseSchedule
from gas_ext._utils.noise import stacked_noise
from gas_ext.samples import TeacherSamples, generate_samples
from gas_ext.samples.generate import default_shard_size
from gas_ext.solvers import UniPCSolver
from gas_ext.training.baselines import classical_solver


def sampled(denoiser, seeds, condition=None, solver=None, **options):
    """The samples that `GASSampler` makes of seeds, by default with the solver of `make_samples`."""
    with torch.no_grad():
        sampler = GASSampler(solver or UniPCSolver(denoiser.schedule, 3), denoiser, **options)
        return sampler(stacked_noise(seeds, (2, 3)), condition)


def test_samples_are_those_of_the_sampler(tmp_path):
    seeds = [5, 3, 3, -7, 2**40, 0, 1]
    samples = make_samples(tmp_path, seeds)
    batch = samples.batch(range(7))
    assert batch.samples.dtype == torch.float32
    torch.testing.assert_close(batch.samples, sampled(make_denoiser(), seeds))
    assert torch.equal(batch.noise, stacked_noise(seeds, (2, 3)))
    assert batch.seeds.tolist() == seeds
    assert (batch.condition, batch.images) == (None, None)
    assert len(samples) == 7


def test_shards_hold_seeds_and_samples_but_no_noise(tmp_path):
    make_samples(tmp_path)
    assert listing(tmp_path) == ["manifest.json", *(f"shard-0000{n}.safetensors" for n in range(3))]
    tensors = load_file(tmp_path / "shard-00002.safetensors")
    assert {name: tuple(value.shape) for name, value in tensors.items()} == {
        "seeds": (3,),
        "samples": (3, 2, 3),
    }


@pytest.mark.parametrize("shape", [(7,), (2, 5), (3, 4, 4), (2, 3, 4, 4)])
def test_any_shape_of_sample(tmp_path, shape):
    samples = make_samples(tmp_path, range(5), make_denoiser(shape))
    assert samples.batch([4, 0]).samples.shape == (2, *shape)
    assert TeacherSamples.open(tmp_path).sample_shape == shape


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_files_do_not_depend_on_the_number_of_processes(tmp_path, world_size):
    make_samples(tmp_path / "one")
    done = [
        make_samples(tmp_path / "many", rank=rank, world_size=world_size)
        for rank in reversed(range(world_size))
    ]
    assert [samples.complete for samples in done] == [False] * (world_size - 1) + [True]
    assert shard_bytes(tmp_path / "many") == shard_bytes(tmp_path / "one")
    assert manifest(tmp_path / "many") == manifest(tmp_path / "one")


def test_rank_and_number_of_processes_come_from_torchrun(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    samples = make_samples(tmp_path)
    assert listing(tmp_path) == ["manifest.json", "shard-00001.safetensors"]
    assert samples.missing() == ["shard-00000.safetensors", "shard-00002.safetensors"]
    with pytest.raises(ValueError, match="rank is 2 of 2"):
        make_samples(tmp_path, rank=2)


def test_batch_size_changes_neither_noise_nor_samples_of_a_network_without_rounding(tmp_path):
    whole = make_samples(tmp_path / "a", batch_size=11, shard_size=11).batch(range(11))
    parts = make_samples(tmp_path / "b", batch_size=1, shard_size=3).batch(range(11))
    assert torch.equal(whole.noise, parts.noise)
    torch.testing.assert_close(whole.samples, parts.samples)


def test_evaluations_are_counted(tmp_path):
    denoiser = make_denoiser(condition_kind="label", num_classes=4)
    samples = make_samples(tmp_path, denoiser=denoiser, steps=5, guidance_scale=2.0)
    assert samples.nfe == manifest(tmp_path)["nfe"] == 5
    assert denoiser.evaluations == 5 * 6  # 11 samples, two per batch


def test_labels_follow_the_seed_unless_given(tmp_path):
    seen = []

    def network(x, t, condition):
        seen.append(condition)
        return torch.tanh(x) + condition[:, None, None]

    denoiser = make_denoiser(function=network, condition_kind="label", num_classes=4)
    seeds = [3, 4, 9, 2, 7]
    batch = make_samples(tmp_path / "a", seeds, denoiser).batch([4, 0, 2])
    assert batch.condition.dtype == torch.int64
    assert batch.condition.tolist() == [3, 3, 1]
    assert torch.cat(seen[::3]).tolist() == [3, 0, 1, 2, 3]
    given_labels = make_samples(tmp_path / "b", seeds, denoiser, labels=[0, 4, 3])
    assert given_labels.batch(range(5)).condition.tolist() == [0, 4, 3, 0, 4]
    expected = sampled(denoiser, seeds, torch.tensor([0, 4, 3, 0, 4]))
    torch.testing.assert_close(given_labels.batch(range(5)).samples, expected)


def test_prompts_follow_the_index_and_are_stored_as_text(tmp_path):
    class Prompted(Denoiser):
        def predict(self, x, t, condition):
            return torch.tanh(x) * condition[:, None, None]

        def encode_condition(self, values):
            if isinstance(values, str):
                values = [values]
            return torch.tensor([float(len(text)) for text in values])

        def unconditional_condition(self):
            return self.encode_condition("")

    denoiser = Prompted(
        schedule=NoiseSchedule.vp_linear(),
        prediction_type="sample",
        sample_shape=(2, 3),
        condition_kind="prompt",
    )
    prompts = ["a café", "", "naïve 雪"]
    samples = make_samples(tmp_path / "a", range(10, 17), denoiser, prompts=prompts, guidance_scale=7.5)
    assert samples.batch([6, 1, 2, 3]).condition == ["a café", "", "naïve 雪", "a café"]
    expected = sampled(denoiser, [12], ["naïve 雪"], guidance_scale=7.5)
    torch.testing.assert_close(samples.batch([2]).samples, expected)
    assert samples.settings["guidance_scale"] == 7.5
    with pytest.raises(ValueError, match="needs prompts"):
        make_samples(tmp_path / "b", denoiser=denoiser)
    for wrong in ("a dog", ["a", None]):
        with pytest.raises(TypeError, match="must be a list of strings"):
            make_samples(tmp_path / "b", denoiser=denoiser, prompts=wrong)
    assert listing(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("kind", "given", "reason"),
    [
        ("none", {"labels": [1]}, "takes no condition, but got labels"),
        ("label", {"prompts": ["a"]}, "takes conditions of type 'label', but got prompts"),
        ("label", {"labels": []}, "no labels"),
        ("label", {"labels": [0, 5]}, "from 0 to 3"),
        ("label", {"labels": [0.5]}, "must be integers"),
        ("label", {"labels": [[0, 1]]}, "one integer per sample"),
        ("tensor", {"conditions": torch.zeros(3, 1)}, "3 rows of conditions for 11 seeds"),
    ],
)
def test_conditions_that_do_not_fit_are_refused_before_any_work(tmp_path, kind, given, reason):
    denoiser = make_denoiser(condition_kind=kind, num_classes=4 if kind == "label" else None)
    with pytest.raises(ValueError, match=reason):
        make_samples(tmp_path, denoiser=denoiser, **given)
    assert denoiser.evaluations == 0
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.int32, torch.bool, torch.uint8, torch.float64, torch.bfloat16]
)
def test_tensor_conditions_and_images_of_any_dtype_are_stored(tmp_path, dtype):
    rows = torch.arange(22).reshape(11, 2, 1).to(dtype)
    denoiser = make_denoiser(
        function=lambda x, t, condition: torch.tanh(x + condition.to(x.dtype) / 20),
        condition_kind="tensor",
        decode=lambda x: (10 * x).to(dtype),
    )
    samples = make_samples(tmp_path, denoiser=denoiser, conditions=rows, images=True)
    batch = samples.batch([9, 1])
    assert (batch.condition.dtype, batch.images.dtype) == (dtype, dtype)
    assert torch.equal(batch.condition, rows[[9, 1]])
    assert torch.equal(batch.images, (10 * batch.samples).to(dtype))
    torch.testing.assert_close(batch.samples, sampled(denoiser, [9, 1], rows[[9, 1]]))


def test_images_do_not_change_the_samples(tmp_path):
    denoiser = make_denoiser(decode=lambda latents: latents.repeat(1, 2, 2).clamp(-1, 1))
    samples = make_samples(tmp_path / "a", denoiser=denoiser, images=True)
    assert samples.image_shape == (4, 6)
    without = make_samples(tmp_path / "b", denoiser=denoiser)
    assert (without.image_shape, without.batch([0]).images) == (None, None)
    assert torch.equal(without.batch(range(11)).samples, samples.batch(range(11)).samples)


@pytest.mark.parametrize(
    ("decode", "image_shape"),
    [
        (lambda x: x.flatten(1).sum(1), ()),
        (lambda x: x.flatten(1), (48,)),
        (lambda x: x.contiguous(memory_format=torch.channels_last), (3, 4, 4)),
        (lambda x: x[:, :1].expand_as(x), (3, 4, 4)),
    ],
)
def test_images_of_any_shape_and_layout_are_stored(tmp_path, decode, image_shape):
    samples = make_samples(tmp_path, denoiser=make_denoiser((3, 4, 4), decode=decode), images=True)
    batch = samples.batch([10, 0])
    assert samples.image_shape == image_shape
    assert torch.equal(batch.images, decode(batch.samples))


@pytest.mark.parametrize(
    ("decode", "reason"),
    [
        (lambda x: x.flatten(), r"returned \(6,\) for 1 samples"),
        (lambda x: (x,), "returned tuple for 1 samples"),
        (lambda x: x[:1], r"returned \(1, 2, 3\) for 2 samples"),
        (lambda x: x.sum(), r"returned \(\) for 1 samples"),
    ],
)
def test_decode_must_return_one_image_per_sample(tmp_path, decode, reason):
    with pytest.raises(ValueError, match=f"decode of denoiser {reason}"):
        make_samples(tmp_path, denoiser=make_denoiser(decode=decode), images=True)
    assert listing(tmp_path) == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_samples_and_images_that_are_not_finite_are_not_written(tmp_path, bad):
    def network(x, t, condition):
        output = torch.tanh(x)
        output[(condition == 6) | (condition == 7)] = bad
        return output

    denoiser = make_denoiser(function=network, condition_kind="label", num_classes=100)
    with pytest.raises(ValueError, match="seeds 6, 7 are not finite"):
        make_samples(tmp_path / "a", denoiser=denoiser)
    assert listing(tmp_path / "a") == ["manifest.json", "shard-00000.safetensors"]
    with pytest.raises(ValueError, match=r"seeds 0, 1 are not finite"):
        make_samples(tmp_path / "b", denoiser=make_denoiser(decode=lambda x: x * bad), images=True)
    assert listing(tmp_path) == ["a"]


def test_network_runs_in_evaluation_mode_and_is_restored(tmp_path):
    module = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Tanh().eval())
    seen = []

    def forward(x, t, condition):
        seen.append((torch.get_num_threads(), torch.backends.cudnn.benchmark, torch.is_grad_enabled()))
        return module(x)

    denoiser = make_denoiser(function=torch.nn.ModuleList([module]))
    denoiser.function.forward = forward
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.backends.cudnn.flags(benchmark=True):
            samples = make_samples(tmp_path / "a", denoiser=denoiser)
            assert (torch.get_num_threads(), torch.backends.cudnn.benchmark) == (2, True)
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {(1, False, False)}
    assert (denoiser.training, module.training, module[1].training) == (True, True, False)
    plain = make_denoiser(function=lambda x, t, condition: torch.tanh(x))
    expected = make_samples(tmp_path / "b", denoiser=plain).batch(range(11))
    assert torch.equal(samples.batch(range(11)).samples, expected.samples)


def test_autocast_reaches_the_network_and_not_the_states(tmp_path):
    weight, seen = torch.eye(3), []

    def network(x, t, condition):
        seen.append((x @ weight).dtype)
        return torch.tanh(x)

    denoiser = make_denoiser(function=network)
    samples = make_samples(tmp_path, range(2), denoiser, autocast=torch.bfloat16)
    assert set(seen) == {torch.bfloat16}
    assert samples.batch([0]).samples.dtype == torch.float32
    assert samples.settings["autocast"] == "bfloat16"


def test_any_solver_can_be_the_teacher_s(tmp_path):
    denoiser = make_denoiser()
    learned = GeneralizedSolver(denoiser.schedule, 4)
    for index, solver in enumerate([classical_solver(denoiser.schedule, 4, 3, "logsnr").solver, learned]):
        samples = generate_samples(denoiser, solver, range(3), tmp_path / str(index))
        expected = sampled(denoiser, range(3), solver=solver)
        torch.testing.assert_close(samples.batch(range(3)).samples, expected)
    learned.data_corrections.data[0, 1] = 1e-3
    with pytest.raises(ValueError, match=r"solver\.corrections"):
        generate_samples(denoiser, learned, range(3), tmp_path / "1")


def test_wrong_arguments_are_refused(tmp_path):
    for options, reason in (
        ({"seeds": []}, "no seeds"),
        ({"seeds": [2**63]}, "64 bits"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"shard_size": 0}, "shard_size is 0"),
        ({"threads": 0}, "threads is 0"),
    ):
        with pytest.raises(ValueError, match=reason):
            make_samples(tmp_path, **options)
    for seeds in ([0.5], "0-3", 5):
        with pytest.raises(TypeError, match="seeds must be a sequence of integers"):
            make_samples(tmp_path, seeds)
    with pytest.raises(TypeError, match=r"Denoiser\.from_callable"):
        generate_samples(torch.tanh, UniPCSolver(NoiseSchedule.vp_linear(), 2), [0], tmp_path)
    assert listing(tmp_path) == []


def test_manifest_records_settings_and_versions(tmp_path):
    make_samples(tmp_path, command="gas-ext teach")
    record = manifest(tmp_path)
    assert record["settings"]["seeds"] == "0-10"
    assert record["settings"]["solver"]["kind"] == "UniPCSolver"
    assert record["settings"]["teacher"]["name"] == "denoiser"
    assert record["made_with"]["torch"] == torch.__version__
    assert record["made_with"]["command"] == "gas-ext teach"
    assert [entry["samples"] for entry in record["shards"].values()] == [4, 4, 3]
    json.dumps(record, allow_nan=False)


@given(st.integers(1, 10**5), st.integers(1, 3000), st.integers(1, 2**32))
def test_default_shards_are_whole_batches_of_bounded_size(samples, batch_size, bytes_per_sample):
    size = default_shard_size(samples, batch_size, bytes_per_sample)
    assert size >= batch_size
    assert size % batch_size == 0
    assert size == batch_size or (size <= 1024 and size * bytes_per_sample <= 2**28)
    assert size == batch_size or samples >= 16 * size
