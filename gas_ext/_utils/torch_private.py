"""Private names of torch; the test of this module fails when a new torch breaks one."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Whether a transform of `torch.func` or forward mode is active.

    >>> is_transformed(), torch.func.vmap(lambda x: x + is_transformed())(torch.zeros(1))
    (False, tensor([1.]))
    """
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def is_intercepted() -> bool:
    """Whether Python intercepts operations, as in a FakeTensorMode, and tensors may have no values."""
    return torch._C._len_torch_dispatch_stack() > 0


def below_autograd() -> AbstractContextManager[None]:
    """Call operators without autograd's own layer, which costs as much as a small operator."""
    return torch._C._AutoDispatchBelowAutograd()


def storage_id(storage: torch.UntypedStorage) -> int:
    """Return the identity of a storage, also on the meta device, where storages have no address."""
    return int(storage._cdata)
