import pickle
from collections import defaultdict

import numpy as np
import pytest
import torch
from golden_data import GOLDEN, arrays
from hypothesis import given
from hypothesis import strategies as st
from sample_tools import flip_bit, listing, make_denoiser, shard_bytes

from gas_ext._utils.noise import stacked_noise
from gas_ext.samples import ReferenceDataset, SampleSource, TeacherSamples, convert_dataset, verify_samples

NAMES = ("pixel", "latent_class", "latent_prompt")


def expected(name):
    """The arrays of a golden data set as a batch has them: samples, images, condition."""
    stored = arrays(f"dataset/{name}.npz")
    samples = stored.get("latents", stored["images"])
    return stored, samples, stored["images"] if "latents" in stored else None, stored.get("condition")


@pytest.mark.parametrize("name", NAMES)
def test_published_form_is_read_bit_for_bit(name):
    stored, samples, images, condition = expected(name)
    dataset: SampleSource = ReferenceDataset(GOLDEN / "dataset" / f"{name}.pkl")
    assert (len(dataset), dataset.sample_shape) == (16, samples.shape[1:])
    batch = dataset.batch(range(16))
    assert np.array_equal(batch.noise.numpy(), stored["noise"])
    assert np.array_equal(batch.samples.numpy(), samples)
    assert batch.seeds is None
    assert (batch.images is None) == (images is None) == (dataset.image_shape is None)
    if images is not None:
        assert np.array_equal(batch.images.numpy(), images)
        assert dataset.batch([0], images=False).images is None
    if name == "latent_class":
        assert batch.condition.dtype == torch.int64
        assert np.array_equal(batch.condition.numpy(), condition)
    else:
        assert batch.condition == (None if condition is None else condition.tolist())
    assert dataset.condition_kind == {"pixel": "none", "latent_class": "label"}.get(name, "prompt")


@given(name=st.sampled_from(NAMES), indices=st.lists(st.integers(0, 15), min_size=1, max_size=20))
def test_rows_are_those_requested(name, indices):
    dataset = ReferenceDataset(GOLDEN / "dataset" / f"{name}.pkl")
    whole, batch = dataset.batch(range(16)), dataset.batch(torch.tensor(indices))
    for field in ("noise", "samples", "images"):
        if getattr(whole, field) is not None:
            assert torch.equal(getattr(batch, field), getattr(whole, field)[indices])
    if isinstance(whole.condition, list):
        assert batch.condition == [whole.condition[i] for i in indices]
    with pytest.raises(IndexError, match="expected 0 to 15"):
        dataset.batch([16])


@pytest.mark.parametrize("name", NAMES)
def test_seeds_are_found_whatever_the_order_of_the_chunks(name):
    dataset = ReferenceDataset(GOLDEN / "dataset" / f"{name}.pkl")
    assert dataset.find_seeds(range(100)) == arrays(f"dataset/{name}.npz")["seeds"].tolist()
    with pytest.raises(ValueError, match="noise of 6 of 16 samples"):
        dataset.find_seeds(range(10))


@pytest.mark.parametrize("name", NAMES)
def test_conversion_sorts_by_seed_and_drops_the_noise(tmp_path, name):
    stored, samples, images, condition = expected(name)
    path = GOLDEN / "dataset" / f"{name}.pkl"
    converted = convert_dataset(path, tmp_path, range(20), images=True, shard_size=6)
    order = np.argsort(stored["seeds"])
    batch = TeacherSamples.open(tmp_path, verify=True).batch(range(16))
    assert batch.seeds.tolist() == sorted(stored["seeds"]) == converted.seeds
    assert np.array_equal(batch.noise.numpy(), stored["noise"][order])
    assert np.array_equal(batch.samples.numpy(), samples[order])
    if images is not None:
        assert np.array_equal(batch.images.numpy(), images[order])
    if condition is not None:
        assert list(batch.condition) == condition[order].tolist()
    size = sum(path.stat().st_size for path in tmp_path.glob("shard*"))
    assert size < path.stat().st_size - stored["noise"].nbytes + 8000
    assert converted.nfe is None


@pytest.mark.slow
def test_conversion_resumes_repairs_and_refuses_another_file(tmp_path):
    def convert(name="pixel", **options):
        return convert_dataset(
            GOLDEN / "dataset" / f"{name}.pkl",
            tmp_path,
            **{"shard_size": 6, "candidates": range(20), **options},
        )

    convert(candidates=None)
    before, shard = shard_bytes(tmp_path), tmp_path / "shard-00001.safetensors"
    shard.unlink()
    assert convert().complete
    assert shard_bytes(tmp_path) == before
    flip_bit(shard)
    convert()
    assert list(verify_samples(tmp_path)) == [shard.name]
    convert(repair=True)
    assert shard_bytes(tmp_path) == before
    assert verify_samples(tmp_path) == {}
    with pytest.raises(ValueError, match="other settings"):
        convert("latent_class")
    with pytest.raises(ValueError, match="shard_size is 0"):
        convert(shard_size=0)


def test_copies_reopen_the_file():
    dataset = ReferenceDataset(GOLDEN / "dataset" / "pixel.pkl")
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy.batch([7]).samples, dataset.batch([7]).samples)


def test_converted_samples_accept_a_teacher_of_their_shape_and_conditions(tmp_path):
    dataset = ReferenceDataset(GOLDEN / "dataset" / "latent_class.pkl")
    samples = convert_dataset(dataset.path, tmp_path, range(20))
    options = {"condition_kind": "label", "num_classes": 10}
    samples.check_teacher(make_denoiser(dataset.sample_shape, **options))
    for other in (make_denoiser((2, 3), **options), make_denoiser(dataset.sample_shape)):
        with pytest.raises(ValueError, match="load their teacher"):
            samples.check_teacher(other)


def write(path, **changes):
    noise = stacked_noise(range(3), (2, 4))
    content = {"noise": noise, "latents": noise / 2, "images": [None] * 3, "condition": [None] * 3, **changes}
    path.write_bytes(pickle.dumps(defaultdict(list, content), protocol=4))
    return path


def test_latents_without_images(tmp_path):
    dataset = ReferenceDataset(write(tmp_path / "d.pkl"))
    assert dataset.image_shape is None
    assert torch.equal(dataset.batch([1]).samples, dataset.batch([1]).noise / 2)


def test_noise_that_matches_no_seed_is_read_but_not_converted(tmp_path):
    noise = stacked_noise(range(3), (2, 8))
    noise[1, 1, 7] += 1e-6
    path = write(tmp_path / "d.pkl", noise=noise, latents=noise)
    assert torch.equal(ReferenceDataset(path).batch([1]).noise, noise[1:2])
    with pytest.raises(ValueError, match="noise of 1 of 3 samples"):
        convert_dataset(path, tmp_path / "out", range(3))
    assert listing(tmp_path) == ["d.pkl"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"noise": [None] * 3}, "its entry 'noise' is not a tensor"),
        ({"latents": [None] * 3}, "neither latents nor images"),
        ({"latents": torch.zeros(2, 2, 4)}, "2 latents for 3 samples"),
        ({"latents": torch.zeros(3, 2, 5)}, "another shape"),
        ({"condition": ["a", "b"]}, "2 prompts for 3"),
        ({"condition": torch.zeros(4)}, "4 conditions for 3"),
        ({"condition": ["a", None, "b"]}, "not a tensor"),
    ],
)
def test_impossible_content_is_refused(tmp_path, changes, reason):
    with pytest.raises(ValueError, match=reason):
        ReferenceDataset(write(tmp_path / "d.pkl", **changes))


def test_other_pickles_are_refused_and_not_executed(tmp_path):
    path = tmp_path / "d.pkl"
    for content in ([1, 2], {"noise": torch.zeros(1)}):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match="not a data set"):
            ReferenceDataset(path)
    path.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    with pytest.raises(ValueError, match="refused"):
        ReferenceDataset(path)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(FileNotFoundError):
        ReferenceDataset(tmp_path / "none.pkl")
