"""The fused solver update: compiled operators, their autograd, and the pure-torch reference."""

from gas_ext.ops.fused_update import FusedUpdate, fused_update
from gas_ext.ops.library import build_info, has_kernels, info
from gas_ext.ops.reference import UpdateResult, fused_update_reference

__all__ = [
    "FusedUpdate",
    "UpdateResult",
    "build_info",
    "fused_update",
    "fused_update_reference",
    "has_kernels",
    "info",
]
