"""A whole solve as one CUDA graph: recorded once per type of input, then replayed with a single launch.

A small network is bound by the launches of its kernels, some ten microseconds each from Python, rather than
by the GPU. A CUDA graph repeats all of them on the same memory. So inputs are first copied into fixed
tensors; the parameters of solver and network are read again in each replay.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

MAX_GRAPHS = 4  # each holds the memory of a solve
_WARM_UP = 3  # solves before recording, in which libraries choose algorithms and allocate workspaces
_DEVICE_TYPE = "cuda"

# From noise and condition to a sample, and what must live as long as the recording, which reads it.
SolveFunction = Callable[[Tensor, Any], tuple[Tensor, Any]]


class _NotCapturable(Exception):
    """Reason why a solve runs step by step."""


class _Recording(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]  # the noise, then the tensors of the condition
    sample: Tensor
    reads: Any  # kept alive


class SolveGraphs:
    """The latest graphs of one sampler."""

    def __init__(self) -> None:
        self._recordings: OrderedDict[Hashable, _Recording | None] = OrderedDict()  # None: failed
        self._explained: set[str] = set()

    def __reduce__(self) -> tuple[type[SolveGraphs], tuple[()]]:
        """Let copies and unpickled objects start empty."""
        return SolveGraphs, ()

    def solve(self, function: SolveFunction, noise: Tensor, condition: Any, key: Hashable) -> Tensor | None:
        """Return the sample of function(noise, condition) in new memory, or None where no graph is possible.

        `function` is called a few times before and while it is recorded. Another noise or condition with
        tensors of the same shapes is replayed; other plain values and another `key` need a new graph.
        """
        try:
            inputs = [noise]
            signature = _signature(condition, inputs)
            _check_capturable(inputs)
        except _NotCapturable as reason:
            self.explain(str(reason))
            return None
        if torch.cuda.is_current_stream_capturing():  # into the caller's graph
            return None
        autocast = torch.is_autocast_enabled(_DEVICE_TYPE), torch.get_autocast_dtype(_DEVICE_TYPE)
        key = key, signature, noise.shape, noise.stride(), noise.dtype, noise.device, autocast
        if key in self._recordings:
            self._recordings.move_to_end(key)
        else:
            if len(self._recordings) == MAX_GRAPHS:
                self._recordings.popitem(last=False)
            self._recordings[key] = self._record(function, inputs, condition)
        recording = self._recordings[key]
        if recording is None:
            return None
        for fixed, tensor in zip(recording.inputs, inputs, strict=True):
            fixed.copy_(tensor)
        recording.graph.replay()
        return recording.sample.clone()

    def explain(self, reason: str) -> None:
        """Warn why no graph is used, once for each reason."""
        if reason not in self._explained:
            self._explained.add(reason)
            warnings.warn(
                f"cuda_graph=True has no effect on this solve, which runs step by step: {reason}.",
                RuntimeWarning,
                stacklevel=2,
            )

    def _record(self, function: SolveFunction, inputs: list[Tensor], condition: Any) -> _Recording | None:
        try:
            return _record(function, inputs, condition)
        except _NotCapturable as reason:
            self.explain(str(reason))
            return None


def _record(function: SolveFunction, inputs: list[Tensor], condition: Any) -> _Recording:
    """Run the solve a few times on a side stream, then record it."""
    # In inference mode the fixed tensors could not be written to later. Autocast's cache of converted weights
    # would be read by the graph after it is gone.
    autocast = torch.autocast(
        _DEVICE_TYPE,
        torch.get_autocast_dtype(_DEVICE_TYPE),
        torch.is_autocast_enabled(_DEVICE_TYPE),
        cache_enabled=False,
    )
    with torch.inference_mode(False), torch.no_grad(), torch.cuda.device(inputs[0].device), autocast:
        fixed = [tensor.clone() for tensor in inputs]
        noise, *tensors = fixed
        condition = _replaced(condition, iter(tensors))
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                function(noise, condition)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads, of a data loader for example, may keep using the GPU.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                sample, reads = function(noise, condition)
        except RuntimeError as error:
            raise _NotCapturable(f"it cannot be recorded ({error})") from error
    return _Recording(graph, fixed, sample, reads)


def _check_capturable(inputs: list[Tensor]) -> None:
    if torch.is_grad_enabled():
        raise _NotCapturable("gradients are recorded; call it under torch.no_grad()")
    for tensor in inputs:
        if tensor.device.type != _DEVICE_TYPE:
            raise _NotCapturable(f"noise or condition is on {tensor.device}; move it to a CUDA device")


def _signature(condition: Any, tensors: list[Tensor]) -> Hashable:
    """Append the condition's tensors to `tensors`; return what conditions of one graph must share."""
    if isinstance(condition, Tensor):
        tensors.append(condition)
        return condition.shape, condition.dtype, condition.device
    if type(condition) is dict:
        return dict, tuple((name, _signature(value, tensors)) for name, value in condition.items())
    if type(condition) in (list, tuple):
        return type(condition), tuple(_signature(value, tensors) for value in condition)
    if condition is None or isinstance(condition, (bool, int, float, str)):
        return type(condition), condition
    raise _NotCapturable(f"the condition holds a {type(condition).__name__}; give tensors and plain values")


def _replaced(condition: Any, tensors: Iterator[Tensor]) -> Any:
    """Return a condition with its tensors replaced by others, in the order of `_signature`."""
    if isinstance(condition, Tensor):
        return next(tensors)
    if isinstance(condition, dict):
        return {name: _replaced(value, tensors) for name, value in condition.items()}
    if isinstance(condition, (list, tuple)):
        return type(condition)(_replaced(value, tensors) for value in condition)
    return condition
