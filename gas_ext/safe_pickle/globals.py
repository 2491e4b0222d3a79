"""The list of globals that a file may name, and the builder of each."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from gas_ext.safe_pickle.errors import DamagedPickleError, Limits, UnsafePickleError, printable
from gas_ext.safe_pickle.objects import PickledGlobal, PickledObject, PickledTensor, Storage

Builder = Callable[..., Any]  # builder(limits, *arguments in the file)

# Classes whose instances become PickledObject: a name and attributes.
_MODULES = {
    "torch.nn.modules.activation": "LeakyReLU ReLU SiLU",
    "torch.nn.modules.container": "ModuleDict ModuleList ParameterList Sequential",
    "torch.nn.modules.conv": "Conv1d Conv2d Conv3d ConvTranspose2d",
    "torch.nn.modules.dropout": "Dropout",
    "torch.nn.modules.linear": "Identity Linear",
    "torch.nn.modules.normalization": "GroupNorm LayerNorm",
    "torch.nn.modules.sparse": "Embedding",
    **dict.fromkeys(("training.networks", "training.networks_baseline"), "Discriminator Generator"),
    **dict.fromkeys(
        ("R3GAN.Networks", "BaselineGAN.Networks"),
        "Convolution DiscriminativeBasis Discriminator DiscriminatorStage DownsampleLayer GenerativeBasis "
        "Generator GeneratorStage MultiLayerPerceptron ResidualBlock ResidualGroup UpsampleLayer",
    ),
    **dict.fromkeys(
        ("R3GAN.FusedOperators", "BaselineGAN.FusedOperators"),
        "BiasedActivation BiasedActivationCUDA BiasedActivationReference",
    ),
    **dict.fromkeys(
        ("R3GAN.Resamplers", "BaselineGAN.Resamplers"),
        "InplaceUpsampler InterpolativeDownsampler InterpolativeDownsamplerCUDA "
        "InterpolativeDownsamplerReference InterpolativeUpsampler InterpolativeUpsamplerCUDA "
        "InterpolativeUpsamplerReference",
    ),
}
RECORDS = frozenset((module, name) for module, names in _MODULES.items() for name in names.split())

# Names that are mere values, such as the callbacks of PyTorch Lightning as dictionary keys.
MARKERS = frozenset(
    {
        ("pytorch_lightning.callbacks.early_stopping", "EarlyStopping"),
        ("pytorch_lightning.callbacks.lr_monitor", "LearningRateMonitor"),
        ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
        ("main", "CUDACallback"),
        ("main", "ImageLogger"),
        ("main", "SetupCallback"),
        ("builtins", "list"),
        ("__builtin__", "list"),
    }
)

_DTYPES = {
    "BFloat16": torch.bfloat16,
    "Bool": torch.bool,
    "Byte": torch.uint8,
    "Char": torch.int8,
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "Int": torch.int32,
    "Long": torch.int64,
    "Short": torch.int16,
}
VALUES: dict[tuple[str, str], Any] = {
    **{("torch", f"{name}Storage"): dtype for name, dtype in _DTYPES.items()},
    **{("torch", str(dtype).removeprefix("torch.")): dtype for dtype in _DTYPES.values()},
}

_TENSOR_COST = 4  # operations; a tensor takes the memory of so many other objects

# NumPy's names of numbers, and their `struct` formats.
_NUMPY_FORMATS = dict(
    zip(["b1", "f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"], "?efdbhiqBHIQ", strict=True)
)


@dataclass
class NumpyDtype:
    """A NumPy element type, little-endian: a plain number, or text of a fixed length such as "U19"."""

    code: str

    def build(self, state: Any) -> None:
        """Check the byte order in the pickled state; the rest does not matter."""
        if not (isinstance(state, tuple) and len(state) >= 2 and state[1] in ("<", "|", "=")):
            raise DamagedPickleError("a NumPy type is not little-endian")


def plain_dict(limits: Limits, *arguments: Any) -> dict[Any, Any]:
    """Read collections.OrderedDict and defaultdict(list); an OrderedDict may have its items in a list."""
    if not arguments or isinstance(arguments[0], PickledGlobal):
        return {}
    pairs = arguments[0]
    if not isinstance(pairs, list) or not all(isinstance(p, (list, tuple)) and len(p) == 2 for p in pairs):
        raise DamagedPickleError("an OrderedDict is not made of pairs")
    limits.spend("operations", len(pairs))
    return {check_key(limits, key): value for key, value in pairs}


def plain_set(limits: Limits, items: Any = ()) -> set[Any]:
    """Read builtins.set of a list."""
    if not isinstance(items, (list, tuple)):
        raise DamagedPickleError("a set is not made of a list")
    limits.spend("operations", len(items))
    return {check_key(limits, item) for item in items}


def check_key(limits: Limits, key: Any) -> Any:
    """Return a dictionary key; DamagedPickleError unless it hashes without recursion."""
    if type(key) in (int, float):
        limits.spend("number_keys")
    elif key is not None and type(key) not in (str, bool, bytes, PickledGlobal):
        raise DamagedPickleError(f"a {type(key).__name__} cannot be a key")
    return key


def persistent_object(limits: Limits, record: Any) -> PickledObject:
    """Read an object of NVIDIA's torch_utils.persistence; its source text is ignored."""
    if not isinstance(record, dict) or record.get("type") != "class":
        raise DamagedPickleError("a persistent object has no class")
    name, state = record.get("class_name"), record.get("state")
    if not isinstance(name, str) or not isinstance(state, dict):
        raise DamagedPickleError("a persistent object has no name or state")
    return PickledObject("torch_utils.persistence", name, state)


def tensor_view(
    limits: Limits, storage: Any, offset: Any, shape: Any, stride: Any, *ignored: Any
) -> PickledTensor:
    """Read torch._utils._rebuild_tensor_v2."""
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(stride, tuple):
        raise DamagedPickleError("a tensor has no storage or no shape")
    limits.spend("operations", _TENSOR_COST)
    return PickledTensor(storage, offset, shape, stride)


def parameter(limits: Limits, tensor: Any, *ignored: Any) -> PickledTensor:
    """Read torch._utils._rebuild_parameter as its tensor."""
    if not isinstance(tensor, PickledTensor):
        raise DamagedPickleError("a parameter is not a tensor")
    return tensor


def numpy_dtype(limits: Limits, code: Any, *ignored: Any) -> NumpyDtype:
    """Read numpy.dtype."""
    if not isinstance(code, str):
        raise DamagedPickleError("a NumPy type has no name")
    if code not in _NUMPY_FORMATS and not re.fullmatch("U[0-9]{1,6}", code):
        raise UnsafePickleError(f"NumPy type '{printable(code)}' is neither a number nor text")
    return NumpyDtype(code)


def numpy_scalar(limits: Limits, dtype: Any, data: Any) -> Any:
    """Read a NumPy number or text as a plain Python one."""
    if not isinstance(dtype, NumpyDtype) or not isinstance(data, (bytes, memoryview)):
        raise DamagedPickleError("a NumPy number has no type or no value")
    if dtype.code[0] != "U":
        return struct.unpack("<" + _NUMPY_FORMATS[dtype.code], data)[0]
    if len(data) != 4 * int(dtype.code[1:]):
        raise DamagedPickleError("a NumPy text has another length than its type")
    limits.spend("text_bytes", len(data))
    return str(data, "utf-32-le").rstrip("\0")


def latin1_bytes(limits: Limits, text: Any, encoding: Any) -> bytes:
    """Read bytes that old protocols write as encoded text."""
    if not isinstance(text, str) or encoding != "latin1":
        raise DamagedPickleError("bytes are not written as latin1 text")
    limits.spend("text_bytes", len(text))
    return text.encode("latin1")


BUILDERS: dict[tuple[str, str], Builder] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): persistent_object,
    ("collections", "OrderedDict"): plain_dict,
    ("collections", "defaultdict"): plain_dict,
    ("builtins", "set"): plain_set,
    ("__builtin__", "set"): plain_set,
    ("torch._utils", "_rebuild_tensor_v2"): tensor_view,
    ("torch._utils", "_rebuild_parameter"): parameter,
    ("numpy", "dtype"): numpy_dtype,
    ("numpy.core.multiarray", "scalar"): numpy_scalar,
    ("numpy._core.multiarray", "scalar"): numpy_scalar,
    ("_codecs", "encode"): latin1_bytes,
}
# torch.storage._load_from_bytes is a builder too: `archive` has it, because it reads a nested stream.
