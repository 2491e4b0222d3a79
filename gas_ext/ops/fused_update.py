"""The fused update as a differentiable function over the compiled operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gas_ext._utils.checks import check_dense
from gas_ext._utils.torch_private import below_autograd, is_intercepted, is_transformed
from gas_ext.ops import library, registration
from gas_ext.ops.reference import FIRST_WEIGHT, UpdateResult, fused_update_reference

MAX_TERMS = 64
_HALF_TYPES = (torch.float16, torch.bfloat16)
STATE_DTYPES = (torch.float64, torch.float32, *_HALF_TYPES)
ForwardOperator = Callable[..., tuple[Tensor, Tensor, Tensor]]
if library.CPU_STATUS.loaded:
    registration.register()
    # Looked up once: finding the operator takes almost as long as a small update.
    _operator: ForwardOperator = torch.ops.gas_ext.fused_update.default
    _operator_out = torch.ops.gas_ext.fused_update_out.default


def fused_update(
    history: Sequence[Tensor],
    output: Tensor,
    coefficients: Tensor,
    *,
    guided: bool = False,
    next_input_dtype: torch.dtype | None = None,
    out: tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor] | None = None,
) -> UpdateResult:
    """Compute one solver step in one pass over memory.

    With K = ``len(history)``, x_n = ``history[0]`` and the coefficient row
    ``[p, q, w, s, c, a_0, ..., a_{K-1}]``::

        m~      = m_u + w (m - m_u)             if guided, else m = output
        D_n     = p x_n + q m~                  any prediction type is some p, q
        x_{n+1} = c D_n + sum_k a_k history[k]
        y       = s x_{n+1}                     the next network input, if requested

    This is the update of the Generalized Solver (arXiv 2510.17699, section 3) with theory and learned
    corrections folded into one row. It is differentiable, twice, in every tensor and every coefficient; for
    higher derivatives use `fused_update_reference`, which also runs in forward mode and under transforms of
    `torch.func` (vmap, grad, jvp, jacrev, ...).

    Parameters
    ----------
    history : sequence of Tensor
        x_n first, then older states and data predictions in any order: 1 to 64 tensors of one shape, dtype
        (float64, float32, float16 or bfloat16), and device. Tensors with the strides of a dense
        ``history[0]`` are read in place, others are copied once.
    output : Tensor
        The network's output, shaped like x_n; with `guided`, twice its batch, unconditional half first. It
        may have a lower precision than the history (a bfloat16 network with float32 states).
    coefficients : Tensor
        5 + K numbers, float64 or float32, on the device of the history.
    guided : bool
        Whether `output` is a doubled batch for classifier-free guidance. Default: False.
    next_input_dtype : torch.dtype, optional
        Also return y, in this dtype.
    out : tuple of Tensor, optional
        Memory for (D_n, x_{n+1}) or (D_n, x_{n+1}, y), shaped like ``history[0]``. It must not share memory
        with an input. Not differentiable.

    Returns
    -------
    UpdateResult
        ``data`` (D_n) and ``state`` (x_{n+1}) in the history's dtype, ``next_input`` (y) or None.

    Raises
    ------
    TypeError
        If a dtype is not supported, or dtypes are mixed within the history.
    ValueError
        If shapes, devices, the number of terms or of coefficients do not match, or `out` aliases an input.

    Examples
    --------
    >>> x = torch.ones(2, 3)
    >>> row = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.5, 2.0], dtype=torch.float64)
    >>> fused_update([x], 4 * x, row).state[0]  # 0.5 * output + 2 * x
    tensor([4., 4., 4.])
    """
    try:
        history = list(history)
        if out is not None:
            return _update_into(out, history, output, coefficients, guided, next_input_dtype)
        return _update(history, output, coefficients, guided, next_input_dtype)
    except (AttributeError, IndexError, RuntimeError, TypeError):
        # The operators check everything. Only now, at no cost for a valid step, name the fault in terms of
        # these arguments; any other error passes unchanged.
        check_update(history, output, coefficients, guided, out)
        if out is not None:
            _check_out(out, history, output, coefficients)
        raise


def operator_without_gradients(device: torch.device) -> ForwardOperator | None:
    """Return the compiled operator for direct calls; None where autograd, a transform or a mode sees them.

    It takes (history, output, coefficients, guided, next_input_dtype) and checks everything itself; after an
    error, `check_update` names the fault.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or is_transformed() or is_intercepted():
        return None
    return _operator if library.has_kernels(device) else None


def _update(
    history: list[Tensor],
    output: Tensor,
    coefficients: Tensor,
    guided: bool,
    next_input_dtype: torch.dtype | None,
) -> UpdateResult:
    x, compiling = history[0], torch.compiler.is_compiling()
    if compiling:
        _check_arguments(history, output, coefficients, guided)
    has_kernels = library.CPU_STATUS.loaded if x.is_cpu else library.has_kernels(x.device)
    if not has_kernels or is_transformed():
        return _by_reference(history, output, coefficients, guided, next_input_dtype)
    if output.dtype != x.dtype:
        output = _match_output_dtype(output, x.dtype)
    direct = next_input_dtype
    if not (next_input_dtype is None or next_input_dtype in (x.dtype, output.dtype)):
        _check_float(next_input_dtype)
        direct = x.dtype  # the kernels write y in the dtype of the state or of the output
    if not coefficients.is_contiguous():
        coefficients = coefficients.contiguous()
    if compiling:  # Dynamo takes no tensor twice, and an output may be a state
        history, output = [t.view_as(t) for t in history], output.view_as(output)
    if compiling or _is_recorded(history, output, coefficients):
        data, state, next_input = FusedUpdate.apply(guided, direct, output, coefficients, *history)
    else:  # small tensors cost more in autograd's Python than in the kernel
        data, state, next_input = _operator(history, output, coefficients, guided, direct)
    if next_input_dtype is None:
        return UpdateResult(data, state, None)
    return UpdateResult(
        data, state, next_input if direct is next_input_dtype else next_input.to(next_input_dtype)
    )


def _by_reference(
    history: list[Tensor],
    output: Tensor,
    coefficients: Tensor,
    guided: bool,
    next_input_dtype: torch.dtype | None,
) -> UpdateResult:
    """Compute the update by plain torch operations, which would broadcast shapes that do not match."""
    check_update(history, output, coefficients, guided)
    x = history[0]
    output = _match_output_dtype(output, x.dtype)
    if next_input_dtype is not None:
        _check_float(next_input_dtype)
    if x.is_cuda and not library.has_kernels(x.device) and not torch.compiler.is_compiling():
        library.warn_without_cuda()
    return fused_update_reference(
        history, output, coefficients, guided=guided, next_input_dtype=next_input_dtype
    )


def _is_recorded(history: list[Tensor], output: Tensor, coefficients: Tensor) -> bool:
    """Whether autograd must see this call."""
    if not torch.is_grad_enabled():
        return False
    if output.requires_grad or coefficients.requires_grad:
        return True
    return any([tensor.requires_grad for tensor in history])  # a list: three times faster than a generator


class FusedUpdate(torch.autograd.Function):
    """Autograd over ``torch.ops.gas_ext.fused_update``, differentiable twice."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return D_n, x_{n+1} and y (an empty tensor if not requested)."""
        # Unpacked here, not in the signature: Dynamo mistakes `ctx` for an input of a signature that happens
        # to have as many names as there are arguments.
        guided, next_input_dtype, output, coefficients, *history = inputs
        data, state, next_input = torch.ops.gas_ext.fused_update(
            history, output, coefficients, guided, next_input_dtype
        )
        ctx.guided = guided
        ctx.has_next_input = next_input_dtype is not None
        ctx.set_materialize_grads(False)
        # x_{n+1} is read for the gradient of the next input's scale only.
        saved_state = (state,) if ctx.has_next_input else ()
        ctx.save_for_backward(output, coefficients, *history, *saved_state)
        if not ctx.has_next_input:
            ctx.mark_non_differentiable(next_input)
        return data, state, next_input

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients that are needed, by the equations of docs/kernels.md."""
        grad_data, grad_state, grad_next_input = grads
        if not ctx.has_next_input:
            grad_next_input = None
        output, coefficients, *history = ctx.saved_tensors
        state = history.pop() if ctx.has_next_input else None
        _, _, needs_output, needs_coefficients, *needs_history = ctx.needs_input_grad
        wanted = [k for k, needed in enumerate(needs_history) if needed]
        if grad_data is None and grad_state is None and grad_next_input is None:
            return (None,) * len(ctx.needs_input_grad)
        grad_wanted, grad_output, grad_coefficients = _call_backward(
            grad_data,
            grad_state,
            grad_next_input,
            history,
            output,
            state,
            coefficients,
            ctx.guided,
            wanted,
            needs_output,
            needs_coefficients,
        )
        grad_history: list[Tensor | None] = [None] * len(history)
        for k, grad in zip(wanted, grad_wanted, strict=True):
            grad_history[k] = grad
        return (
            None,
            None,
            grad_output if needs_output else None,
            grad_coefficients if needs_coefficients else None,
            *grad_history,
        )


def _call_backward(*arguments: Any) -> tuple[list[Tensor], Tensor, Tensor]:
    """Call the backward operator, without its own derivative unless that is recorded: half the cost."""
    operator = torch.ops.gas_ext.fused_update_backward.default
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return operator(*arguments)  # type: ignore[no-any-return]
    with below_autograd():
        return operator(*arguments)  # type: ignore[no-any-return]


def check_update(history: Any, output: Any, coefficients: Any, guided: Any, out: Any = None) -> None:
    """Raise TypeError or ValueError if the arguments of an update are wrong."""
    _check_types(history, output, coefficients, guided, out)
    _check_arguments(history, output, coefficients, guided)


def _check_types(history: Any, output: Any, coefficients: Any, guided: Any, out: Any) -> None:
    """Raise TypeError if an argument is of the wrong type, or a tensor that no kernel can read."""
    for name, sequence in (("history", history), ("out", () if out is None else out)):
        if not isinstance(sequence, list | tuple):
            raise TypeError(f"{name} is a {type(sequence).__name__}; give a sequence of tensors.")
        for k, tensor in enumerate(sequence):
            check_dense(f"{name}[{k}]", tensor)
    check_dense("The output", output)
    check_dense("The coefficients", coefficients)
    if not isinstance(guided, bool):
        raise TypeError(f"guided is {guided!r}; give True or False.")


def _check_arguments(history: Sequence[Tensor], output: Tensor, coefficients: Tensor, guided: bool) -> None:
    if not 1 <= len(history) <= MAX_TERMS:
        raise ValueError(f"The history has {len(history)} tensors; give 1 to {MAX_TERMS}, x_n first.")
    x = history[0]
    if x.dtype not in STATE_DTYPES:
        raise TypeError(f"The history is {x.dtype}; convert it to float64, float32, float16 or bfloat16.")
    for k, tensor in enumerate(history):
        if tensor.dtype != x.dtype:
            raise TypeError(f"history[{k}] is {tensor.dtype}, but history[0] is {x.dtype}; give one dtype.")
        if tensor.shape != x.shape:
            raise ValueError(
                f"history[{k}] has shape {tuple(tensor.shape)}, but history[0] has {tuple(x.shape)}; "
                "give tensors of one shape."
            )
        if tensor.device != x.device:
            raise ValueError(f"history[{k}] is on {tensor.device}, but history[0] is on {x.device}; move it.")
    if not output.dtype.is_floating_point:
        raise TypeError(f"The output is {output.dtype}; give a floating-point tensor.")
    if guided and x.ndim == 0:
        raise ValueError("Guidance needs a batch dimension to double, but history[0] has none; add one.")
    expected = (2 * x.shape[0], *x.shape[1:]) if guided else tuple(x.shape)
    if tuple(output.shape) != expected:
        doubled = " (the batch twice, unconditional half first)" if guided else ""
        raise ValueError(f"The output has shape {tuple(output.shape)}; expected {expected}{doubled}.")
    if coefficients.ndim != 1 or coefficients.shape[0] != FIRST_WEIGHT + len(history):
        raise ValueError(
            f"The coefficients have shape {tuple(coefficients.shape)}; give a vector of "
            f"{FIRST_WEIGHT} + {len(history)} numbers for {len(history)} history tensors."
        )
    if coefficients.dtype not in (torch.float64, torch.float32):
        raise TypeError(f"The coefficients are {coefficients.dtype}; give float64 or float32.")
    for name, tensor in (("The output is", output), ("The coefficients are", coefficients)):
        if tensor.device != x.device:
            raise ValueError(f"{name} on {tensor.device}, but the history is on {x.device}; move it there.")


def _check_float(dtype: Any) -> None:
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"next_input_dtype is {dtype!r}; give a floating-point torch.dtype.")


def _match_output_dtype(output: Tensor, state: torch.dtype) -> Tensor:
    """Convert an output for which no kernel is compiled: only float32 states take a lower precision."""
    if not output.dtype.is_floating_point:
        raise TypeError(f"The output is {output.dtype}; give a floating-point tensor.")
    direct = output.dtype == state or (state == torch.float32 and output.dtype in _HALF_TYPES)
    return output if direct else output.to(state)


def _update_into(
    out: tuple[Tensor, ...],
    history: list[Tensor],
    output: Tensor,
    coefficients: Tensor,
    guided: bool,
    next_input_dtype: torch.dtype | None,
) -> UpdateResult:
    """Run the update into given memory; refuse what autograd or aliasing would corrupt."""
    if next_input_dtype is not None:
        raise ValueError("Both next_input_dtype and out were given; the third tensor of out sets the dtype.")
    if len(out) not in (2, 3):
        raise ValueError(f"out has {len(out)} tensors; give (data, state) or (data, state, next_input).")
    x, compiling = history[0], torch.compiler.is_compiling()
    data, state = out[0], out[1]
    next_input = out[2] if len(out) == 3 else None
    if is_transformed() or _is_recorded([*history, *out], output, coefficients):
        raise ValueError("out cannot be used where a derivative is taken; leave it out, or use no_grad().")
    if compiling:
        _check_arguments(history, output, coefficients, guided)
    if library.has_kernels(x.device) and _is_written_directly(out, x, output):
        if output.dtype != x.dtype:
            output = _match_output_dtype(output, x.dtype)
        _operator_out(history, output, coefficients.contiguous(), guided, data, state, next_input)
        if not compiling:  # so that autograd notices a saved tensor that was overwritten
            torch.autograd.graph.increment_version(out)
        return UpdateResult(data, state, next_input)
    _check_out(out, history, output, coefficients)
    result = _update(history, output, coefficients, guided, None if next_input is None else next_input.dtype)
    for target, value in zip(out, result, strict=False):
        if value is not None:
            target.copy_(value)
    return UpdateResult(data, state, next_input)


def _is_written_directly(out: tuple[Tensor, ...], x: Tensor, output: Tensor) -> bool:
    """Whether the operator takes this memory: the layout of a dense x_n, in dtypes that the kernels write."""
    if len(out) == 3 and out[2].dtype not in (x.dtype, output.dtype):
        return False
    # What the operator expects of a strided x_n, without its memory.
    layout = x.stride() if x.is_contiguous() else torch.empty_like(x, device="meta").stride()
    return all([target.stride() == layout for target in out])


def _check_out(
    out: tuple[Tensor, ...], history: Sequence[Tensor], output: Tensor, coefficients: Tensor
) -> None:
    x, inputs = history[0], [*history, output, coefficients]
    for i, target in enumerate(out):
        if target.shape != x.shape or target.device != x.device:
            raise ValueError(
                f"out[{i}] has shape {tuple(target.shape)} on {target.device}; "
                f"expected {tuple(x.shape)} on {x.device}."
            )
        if i < 2 and target.dtype != x.dtype:
            raise TypeError(f"out[{i}] is {target.dtype}; expected {x.dtype}, the dtype of the history.")
        # Traced tensors have no address; the operator itself checks when the compiled code runs.
        others = [*inputs, *out[:i]]
        if not torch.compiler.is_compiling() and any(_share_memory(target, other) for other in others):
            raise ValueError(f"out[{i}] shares memory with another argument; give it separate memory.")


def _share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether the address ranges of two tensors overlap."""
    if a.numel() == 0 or b.numel() == 0 or a.device != b.device:
        return False
    start_a, end_a = _address_range(a)
    start_b, end_b = _address_range(b)
    return start_a < end_b and start_b < end_a


def _address_range(tensor: Tensor) -> tuple[int, int]:
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return start, start + (last + 1) * tensor.element_size()
