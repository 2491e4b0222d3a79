"""Opcodes and files for the tests of hostile pickles."""

import collections
import io
import pickle
import struct

import numpy as np
import torch

from gas_ext.safe_pickle import DamagedPickleError, UnsafePickleError

REFUSED = (UnsafePickleError, DamagedPickleError)


def snapshot() -> bytes:
    """A small file with everything that known files use: nested streams, views, records, NumPy numbers."""
    value = {
        "noise": torch.arange(12.0).reshape(3, 4),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "values": collections.OrderedDict(a=np.float64(0.5), b={1, 2}, c=(None, True, b"x" * 100)),
        "dtype": torch.float32,
        "list": collections.defaultdict(list, p=["text", 2**40, -1.5]),
    }
    return pickle.dumps(value, 4)


# Opcodes that name a function or class.
GLOBAL = {
    "system": b"cos\nsystem\n",
    "ordered": b"ccollections\nOrderedDict\n",
    "linear": b"ctorch.nn.modules.linear\nLinear\n",
    "tensor": b"ctorch._utils\n_rebuild_tensor_v2\n",
    "load": b"ctorch.storage\n_load_from_bytes\n",
    "set": b"cbuiltins\nset\n",
    "encode": b"c_codecs\nencode\n",
    "dtype": b"cnumpy\ndtype\n",
    "scalar": b"cnumpy.core.multiarray\nscalar\n",
}


def storage_stream(count: int) -> bytes:
    return saved(torch.zeros(count)._typed_storage(), _use_new_zipfile_serialization=False)


def text(value: str) -> bytes:
    return b"\x8d" + struct.pack("<Q", len(value.encode())) + value.encode()


def blob(data: bytes) -> bytes:
    return b"\x8e" + struct.pack("<Q", len(data)) + data


class Calls:
    """Pickles into a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def saved(value, **options) -> bytes:
    """What torch.save writes."""
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()
