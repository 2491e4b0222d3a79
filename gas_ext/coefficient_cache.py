"""Keeping the numbers of a solve while nothing that they follow from changes.

They are the same in every solve of a finished solver, and computing them takes longer than all updates of a
small image.
"""

from __future__ import annotations

from operator import is_
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from gas_ext.classical.base import MultistepSolver
from gas_ext.coefficients import SolverCoefficients
from gas_ext.solver import GeneralizedSolver

if TYPE_CHECKING:
    from gas_ext.sampler import Solver


class _Entry(NamedTuple):
    """Coefficients, and everything that they were computed from."""

    asked: tuple[Solver, str | None, float | None]
    stream: torch.cuda.Stream | None
    attributes: list[Any]
    tensors: list[Tensor]
    coefficients: SolverCoefficients

    def follows_from(self, solver: Solver, tensors: list[Tensor]) -> bool:
        """Whether the solver is what it was: its attributes are the very same objects, its tensors equal."""
        attributes = _attributes(solver)
        if len(self.attributes) != len(attributes) or not all(map(is_, self.attributes, attributes)):
            return False
        for old, new in zip(self.tensors, tensors, strict=True):
            if not (torch.equal(old, new) if new.numel() else old.device == new.device):
                return False
        return True


class CoefficientCache:
    """The coefficients of the last solve, of a solver of this package.

    They are computed anew where they need a gradient, inside a graph of `torch.compile` or a transform of
    `torch.func`, and whenever an attribute, a parameter, a buffer or the device of the solver, or an
    attribute of its schedule, is not what it was. Parameters are compared by value, for a write to `.data`
    leaves no other trace. On a GPU that comparison would wait for the device, so that there only solvers
    without parameters are kept, for one stream at a time. A class derived from `GeneralizedSolver` may depend
    on anything, and is asked each time.
    """

    def __init__(self) -> None:
        self._entry: _Entry | None = None
        self._recorded: list[SolverCoefficients] = []

    def get(
        self, solver: Solver, prediction_type: str | None, guidance_scale: float | None
    ) -> SolverCoefficients:
        """Return what `solver.coefficients` does, to be read only."""
        kept = type(solver) is GeneralizedSolver or isinstance(solver, MultistepSolver)
        traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
        if not kept or traced:
            return solver.coefficients(prediction_type, guidance_scale)
        # What parameters() and buffers() return, in a tenth of their time.
        assert isinstance(solver, nn.Module)
        registered = [*solver._parameters.values(), *solver._buffers.values()]
        tensors = [tensor for tensor in registered if tensor is not None]
        recorded = torch.is_grad_enabled() and any([tensor.requires_grad for tensor in tensors])
        if recorded or solver._modules or not all([_is_comparable(tensor) for tensor in tensors]):
            return solver.coefficients(prediction_type, guidance_scale)
        asked, entry = (solver, prediction_type, guidance_scale), self._entry
        stream = _stream(tensors, entry)
        if (
            entry is None
            or entry.asked != asked
            or entry.stream != stream
            or not entry.follows_from(solver, tensors)
        ):
            with torch.inference_mode(False), torch.no_grad():  # to be of use in any mode
                coefficients = solver.coefficients(prediction_type, guidance_scale)
                copies = [tensor.detach().clone() for tensor in tensors]
            self._entry = entry = _Entry(asked, stream, _attributes(solver), copies, coefficients)
        if stream is not None and torch.cuda.is_current_stream_capturing():
            self._recorded.append(entry.coefficients)  # a graph reads them for as long as it lives
        return entry.coefficients


def _attributes(solver: Solver) -> list[Any]:
    """All but tensors that are registered: of those the dicts that hold them."""
    return [*vars(solver).values(), *vars(solver.schedule).values()]


def _stream(tensors: list[Tensor], entry: _Entry | None) -> torch.cuda.Stream | None:
    """Return the stream that computes on a GPU: another would not wait for numbers still being written.

    Recording with `torch.cuda.graph` begins with waiting for all that was written, and may copy nothing from
    the CPU: there the numbers at hand are taken.
    """
    if not (tensors and tensors[0].is_cuda and torch.cuda.is_initialized()):  # type: ignore[no-untyped-call]
        return None
    if entry is not None and torch.cuda.is_current_stream_capturing():
        return entry.stream
    return torch.cuda.current_stream(tensors[0].device)


def _is_comparable(tensor: Tensor) -> bool:
    """Whether the values of a tensor can be read here and now: not a GPU's, nor a fake's."""
    return (tensor.is_cpu and type(tensor) in (nn.Parameter, Tensor)) or not tensor.numel()
