"""Skips tests without a GPU."""

from __future__ import annotations

import os

import pytest
import torch


def require_cuda(devices: int = 1) -> None:
    """Skip without `devices` CUDA devices; fail instead with FAIL_WITHOUT_CUDA=1."""
    if torch.cuda.is_available() and torch.cuda.device_count() >= devices:
        return
    reason = f"needs {devices} CUDA device{'s' if devices > 1 else ''}"
    if os.environ.get("FAIL_WITHOUT_CUDA") == "1":
        pytest.fail(f"FAIL_WITHOUT_CUDA=1, and this test {reason}")
    pytest.skip(reason)
