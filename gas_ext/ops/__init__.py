"""The fused solver update and its pure-torch reference."""

from gas_ext.ops.reference import UpdateResult, fused_update_reference

fused_update = fused_update_reference

__all__ = ["UpdateResult", "fused_update", "fused_update_reference"]
