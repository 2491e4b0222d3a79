"""Coefficients of a finished solver, computed once and used by every solve.

Computing them takes longer than all updates of a small image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gas_ext._utils.torch_private import is_intercepted
from gas_ext.solvers.coefficients import Solver, SolverCoefficients
from gas_ext.solvers.generalized import GeneralizedSolver
from gas_ext.solvers.multistep import MultistepSolver


def can_bake(solver: Solver) -> bool:
    """Whether `BakedCoefficients` would notice every change of this solver's coefficients in this context.

    False for other classes, whose coefficients may depend on anything, and where gradients of the parameters
    are recorded or `torch.func` has replaced them. On a GPU, comparing values would synchronize, so also
    False for parameters that require a gradient, and while a graph is captured, whose replays follow the
    parameters.
    """
    if torch.compiler.is_compiling():
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

    Parameters are compared by their bytes on the CPU; elsewhere by address and by torch's count of writes.
    """

    def __init__(self, solver: Solver, prediction_type: str | None, guidance_scale: float | None) -> None:
        with torch.inference_mode(False), torch.no_grad():  # usable in any mode
            self.coefficients: SolverCoefficients = solver.coefficients(prediction_type, guidance_scale)
            parameters = [parameter.detach() for parameter in _parameters(solver)]
        self._parameters = parameters  # shares their memory, so that no address is used again
        self._addresses = _addresses(parameters)
        on_cpu = not is_intercepted() and all([parameter.is_cpu for parameter in parameters])
        # Views of the same memory: to compare their bytes takes a tenth of the time of torch.equal.
        self._views = [parameter.view(torch.uint8).numpy() for parameter in parameters] if on_cpu else []
        self._bytes = [view.tobytes() for view in self._views]
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
        # Writes by numpy, ``.data`` or a fused optimizer are not counted; on the CPU the bytes show them.
        return (
            self._addresses == _addresses(_parameters(solver))
            and [view.tobytes() for view in self._views] == self._bytes
        )


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
    """Return addresses, and except on the CPU torch's count of writes, which inference tensors lack."""
    return [(p.data_ptr(), 0 if p.is_cpu or p.is_inference() else p._version) for p in parameters]
