"""The device that a test of the operators runs on: each on the CPU, and again on a GPU."""

from __future__ import annotations

import pytest
import torch
from gpu import require_cuda


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and a CUDA device (selected by ``-m gpu``)."""
    if request.param == "cuda":
        require_cuda()
    return torch.device(request.param)
