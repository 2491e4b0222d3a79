"""What torch has no public name for. The test of this module says when a new torch breaks it."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Whether a transform of `torch.func` or forward mode is at work.

    >>> is_transformed(), torch.func.vmap(lambda x: x + is_transformed())(torch.zeros(1))
    (False, tensor([1.]))
    """
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def is_intercepted() -> bool:
    """Whether Python sees each operation, as under a FakeTensorMode, so that values may not be there."""
    return torch._C._len_torch_dispatch_stack() > 0


def below_autograd() -> AbstractContextManager[None]:
    """Call operators without autograd's own layer, which costs a small operator as much as itself."""
    return torch._C._AutoDispatchBelowAutograd()


def storage_id(storage: torch.UntypedStorage) -> int:
    """Return what tells storages apart, also those of the meta device, which have no address."""
    return int(storage._cdata)
