"""Reads published pickles without running anything in them.

Networks, discriminators, data sets and checkpoints of this field are pickles: programs that name functions
to call. This reader interprets the opcodes itself (`machine`), imports and calls nothing by name, and knows a
fixed list of globals (`globals`), each with its own builder: tensors become `torch.Tensor`, modules become
inert `PickledObject` records. Everything else is refused by name.
"""

from gas_ext.safe_pickle.archive import read_pickle, read_torch_archive
from gas_ext.safe_pickle.errors import DamagedPickleError, Limits, UnsafePickleError, printable
from gas_ext.safe_pickle.objects import (
    PickledGlobal,
    PickledObject,
    PickledTensor,
    check_sharing,
    state_dict_of,
)

__all__ = [
    "DamagedPickleError",
    "Limits",
    "PickledGlobal",
    "PickledObject",
    "PickledTensor",
    "UnsafePickleError",
    "check_sharing",
    "printable",
    "read_pickle",
    "read_torch_archive",
    "state_dict_of",
]
