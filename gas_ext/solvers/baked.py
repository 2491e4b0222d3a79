"""Coefficients of a finished solver, computed once and used by every solve.

Computing them takes longer than all updates of a small image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gas_ext._utils.torch_private import is_intercepted, is_transformed
from gas_ext.solvers.coefficients import Solver, SolverCoefficients
from gas_ext.solvers.generalized import GeneralizedSolver
from gas_ext.solvers.multistep import MultistepSolver


def can_bake(solver: Solver) -> bool:
    """Whether `BakedCoefficients` would notice every change of this solver's coefficients in this context.

    False for other classes, whose coefficients may depend on anything, and where gradients of the parameters
    are recorded, and within a transform of `torch.func`. On a GPU, comparing values would synchronize, so
    also False for parameters that require a gradient, and while a graph is captured, whose replays follow
    the parameters.
    """
    if torch.compiler.is_compiling() or is_transformed():
        return False
    if type(solver) is not GeneralizedSolver:
        return isinstance(solver, MultistepSolver)
    parameters = _parameters(solver)
    if any([type(parameter) is not nn.Parameter for parameter in parameters]):
        return False
    if parameters[0].is_cpu and not torch.is_grad_enabled():
        return True
    if any([parameter.requires_grad for parameter in parameters]):
        return False
    return not is_captured(parameters[0].device)


class BakedCoefficients:
    """Coefficients of a solver, and the parameters and settings they were computed from.

    Parameters are compared by value on the CPU; elsewhere by address and by torch's count of writes.
    """

    def __init__(self, solver: Solver, prediction_type: str | None, guidance_scale: float | None) -> None:
        with torch.inference_mode(False), torch.no_grad():  # usable in any mode
            self.coefficients: SolverCoefficients = solver.coefficients(prediction_type, guidance_scale)
            # Elsewhere than on the CPU the memory is shared, so that its address is not used again.
            self._parameters = [p.detach().clone() if p.is_cpu else p.detach() for p in _parameters(solver)]
        self._addresses = _addresses(_parameters(solver))
        self._settings = solver, prediction_type, guidance_scale
        self._context = _context(solver)
        self._stream = _stream(self._context[0])

    def hold(self, solver: Solver, prediction_type: str | None, guidance_scale: float | None) -> bool:
        """Whether these are the coefficients that the solver would compute now."""
        context = device, _ = _context(solver)
        if self._settings != (solver, prediction_type, guidance_scale) or self._context != context:
            return False
        # Another stream would not wait for coefficients that are still being computed. Capturing a graph
        # starts by waiting for all earlier writes.
        if self._stream != _stream(device) and not is_captured(device):
            return False
        parameters = _parameters(solver)
        if device.type == "cpu":
            # Writes by numpy, ``.data`` or a fused optimizer are not counted, so values are compared.
            return all([torch.equal(old, new) for old, new in zip(self._parameters, parameters, strict=True)])
        return self._addresses == _addresses(parameters)


def is_captured(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured on the current stream."""
    return _is_gpu(device) and torch.cuda.is_current_stream_capturing()


def _is_gpu(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]


def _parameters(solver: Solver) -> list[Tensor]:
    """Return the tensors that coefficients depend on; those of a training-free solver depend on none."""
    if not isinstance(solver, GeneralizedSolver):
        return []
    # As parameters(), in a tenth of its time.
    return [parameter for parameter in solver._parameters.values() if parameter is not None]


def _context(solver: Solver) -> tuple[torch.device, bool]:
    """Return the device of a solver, and whether tensors may have no values, as in a FakeTensorMode."""
    device = solver._anchor.device if isinstance(solver, MultistepSolver) else _parameters(solver)[0].device
    return device, is_intercepted()


def _stream(device: torch.device) -> int | None:
    return torch.cuda.current_stream(device).cuda_stream if _is_gpu(device) else None


def _addresses(parameters: list[Tensor]) -> list[tuple[int, int]]:
    """Return addresses of parameters and torch's count of writes to them (inference tensors have none)."""
    return [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters if not p.is_cpu]
