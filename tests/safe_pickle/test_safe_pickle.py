"""Published files are read to the values they were written from."""

import collections
import hashlib
import pickle

import numpy as np
import pytest
import torch
from golden_data import GOLDEN, arrays, index
from hostile_pickles import saved
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from gas_ext.safe_pickle import (
    DamagedPickleError,
    Limits,
    PickledGlobal,
    PickledObject,
    check_sharing,
    read_pickle,
    read_torch_archive,
    state_dict_of,
)


def golden_files(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(GOLDEN)) for path in GOLDEN.glob(pattern))


def digest(tensor: torch.Tensor) -> list:
    array = np.ascontiguousarray(tensor.numpy())
    return [list(tensor.shape), str(array.dtype), hashlib.sha256(array.tobytes()).hexdigest()]


@pytest.mark.parametrize("name", golden_files("edm/*.pkl"))
def test_edm_snapshots(name):
    found = state_dict_of(read_pickle(GOLDEN / name)["ema"])
    entry = index()["files"].get(name.replace("_era2022", ""))
    expected = {key: value[:3] for key, value in entry["state_dict"].items()}
    assert {key: digest(value) for key, value in found.items()} == expected


@pytest.mark.parametrize("name", golden_files("edm/d*.safetensors") + golden_files("edm/ncsnpp*.safetensors"))
def test_edm_snapshots_equal_their_safetensors_twins(name):
    found = state_dict_of(read_pickle(GOLDEN / name.replace(".safetensors", ".scrubbed.pkl"))["ema"])
    twin = load_file(GOLDEN / name)
    assert found.keys() == twin.keys()
    assert all(torch.equal(found[key], twin[key]) for key in twin)


@pytest.mark.slow
@pytest.mark.parametrize("name", golden_files("r3gan/*.pkl"))
def test_discriminator_snapshots(name):
    snapshot = read_pickle(GOLDEN / name)
    expected = {key: value[:3] for key, value in index()["files"][name]["D_state_dict"].items()}
    assert {key: digest(value) for key, value in state_dict_of(snapshot["D"]).items()} == expected
    assert snapshot["G"].module.startswith("training.networks")


@pytest.mark.parametrize("name", golden_files("dataset/*.pkl"))
def test_sample_sets(name):
    found, expected = read_pickle(GOLDEN / name), arrays(name.replace(".pkl", ".npz"))
    for key in ("noise", "latents", "images"):
        if key in expected:
            assert torch.equal(found[key], torch.from_numpy(expected[key]))
    conditions = found["condition"]
    if "condition" not in expected:
        assert set(conditions) == {None}
    elif isinstance(conditions, torch.Tensor):
        assert conditions.tolist() == expected["condition"].tolist()
    else:
        assert conditions == expected["condition"].tolist()


@pytest.mark.parametrize("name", golden_files("checkpoints/*.pt"))
def test_archives_equal_torch_s_own_reading(name):
    assert_same(read_torch_archive(GOLDEN / name), torch.load(GOLDEN / name, weights_only=True))


def assert_same(found, expected):
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            assert_same(*pair)
    else:
        assert found == expected


@pytest.mark.parametrize("name", golden_files("ldm/*callbacks_class.ckpt"))
def test_lightning_s_classes_are_markers(name):
    found = read_torch_archive(GOLDEN / name)
    (key,) = found["callbacks"]
    assert key == PickledGlobal("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    plain = read_torch_archive(GOLDEN / name.replace("class", "plain"))
    assert_same(found["state_dict"], plain["state_dict"])


LEAVES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text()
NESTED = st.recursive(
    LEAVES,
    lambda parts: st.lists(parts) | st.lists(parts).map(tuple) | st.dictionaries(st.text(), parts),
    max_leaves=40,
)


@pytest.mark.slow
@given(st.sampled_from([2, 3, 4, 5]), NESTED, st.binary(max_size=64))
def test_plain_values_come_back(protocol, value, data):
    value = [value, data] if protocol > 2 else value
    assert read_pickle(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize(
    "value",
    [
        collections.OrderedDict(a=1, b=[2]),
        collections.defaultdict(list, a=[1]),
        {1, 2, 3},
        np.float64(0.25),
        np.int32(-7),
        np.bool_(True),
        np.str_("caption \u00e9"),
        torch.bfloat16,
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_known_globals(value, protocol):
    assert read_pickle(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.uint8])
def test_tensors_and_views_come_back(dtype, legacy):
    base = (torch.randn(6, 5) * 3).to(dtype)
    value = {"base": base, "t": base.T, "part": base[1:4, ::2], "none": base[:0], "one": base[0, 0]}
    found = read_torch_archive(saved(value, _use_new_zipfile_serialization=not legacy))
    assert_same(found, value)
    found["base"][1, 0] = 1
    assert found["part"][0, 0] == 1  # views of one storage stay so


def module_of(**state) -> PickledObject:
    return PickledObject("m", "M", {"_parameters": {}, "_buffers": {}, "_modules": {}, **state})


def test_a_module_gives_its_persistent_tensors():
    module = module_of(
        _parameters={"weight": torch.ones(2), "bias": None},
        _buffers={"stored": torch.zeros(1), "temporary": torch.zeros(1)},
        _non_persistent_buffers_set={"temporary"},
        _modules={"inner": module_of(_parameters={"w": torch.ones(1)})},
    )
    assert list(state_dict_of(module)) == ["weight", "stored", "inner.w"]
    module.state["_modules"]["again"] = module
    with pytest.raises(DamagedPickleError, match="nested deeper"):
        state_dict_of(module)


def test_rows_are_loaded_alone():
    value = torch.arange(24.0).reshape(6, 4)
    rows, transposed = read_torch_archive(saved([value, value.T]), tensors=False)
    assert torch.equal(rows.rows(2, 5), value[2:5])
    assert torch.equal(rows.rows(4, 100), value[4:])
    assert torch.equal(transposed.rows(1, 3), value.T[1:3])
    assert rows.rows(3, 3).shape == (0, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_parameters": None}, "has no _parameters"),
        ({"_parameters": {"w": "text"}}, "w of a network is not a tensor"),
        ({"_modules": {"inner": 3}}, r"inner\. is not a pickled module"),
        ({"_buffers": {3: None}}, "impossible names in its _buffers"),
        ({"_buffers": {"n" * 3000: None}}, "impossible names in its _buffers"),
        ({"_parameters": dict.fromkeys(map(str, range(90_000)))}, "more than 100000 names"),
    ],
)
def test_impossible_modules(changes, message):
    inner = module_of(**changes)
    with pytest.raises(DamagedPickleError, match=message):
        state_dict_of(module_of(_modules={"a": inner, "b": inner}))


def test_a_few_tensors_may_be_tied_but_not_many():
    tensor = torch.ones(100)
    check_sharing([tensor, tensor])
    check_sharing([tensor[:50], tensor[50:], tensor])
    check_sharing([])
    with pytest.raises(DamagedPickleError, match="share their numbers"):
        check_sharing([tensor] * 3)


def test_long_bytes_are_views_and_short_ones_are_bytes():
    short, long = read_pickle(pickle.dumps([b"a" * 64, b"a" * 65], 4))
    assert type(short) is bytes
    assert type(long) is memoryview
    assert long == b"a" * 65


def test_reading_leaves_the_limits_as_they_were():
    limits = Limits()
    read_pickle(pickle.dumps(["a", {1: 2}]), limits)
    assert limits == Limits()


def test_a_state_dict_s_version_numbers_are_dropped():
    assert list(read_torch_archive(saved(nn.Linear(2, 3).state_dict()))) == ["weight", "bias"]


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        read_pickle(tmp_path / "none.pkl")
