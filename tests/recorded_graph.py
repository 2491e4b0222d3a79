"""A stand-in for CUDA graphs: records operations on the CPU, and repeats them on their memory."""

from contextlib import contextmanager, nullcontext
from unittest.mock import MagicMock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gas_ext._utils import cuda_graphs

READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)


class RecordedGraph(TorchDispatchMode):
    """Like a CUDA graph it knows operations and addresses, but nothing of the Python that led to them."""

    def __init__(self):
        super().__init__()
        self.calls = []
        self.replays = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in READS:
            raise RuntimeError("operation not permitted when stream is capturing")
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self):
        self.replays += 1
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if (
                    isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr()
                ):  # no view, not in place
                    old.copy_(new)


def stand_in_for_cuda(monkeypatch):
    """Let tensors on the CPU be recorded; return the graphs made, in order."""
    graphs = []

    def new_graph():
        graphs.append(RecordedGraph())
        return graphs[-1]

    @contextmanager
    def capture(graph, capture_error_mode):
        with graph:
            yield

    monkeypatch.setattr(cuda_graphs, "_DEVICE_TYPE", "cpu")
    monkeypatch.setattr(torch.cuda, "CUDAGraph", new_graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    for name in ("stream", "device"):
        monkeypatch.setattr(torch.cuda, name, lambda _: nullcontext())
    return graphs
