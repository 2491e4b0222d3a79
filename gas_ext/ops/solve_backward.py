"""Gradients of a whole solve, gathered rather than scattered.

A state x_{n+1} and a data prediction D_n stand in the histories of several later steps. Differentiated one
by one, each of these steps writes a gradient for each term, and autograd adds them up: four passes over
memory for each term of each step. A tape leaves the terms out and keeps G = dL/dx_{n+1} of the later steps
instead. When the backward pass arrives at a step, one kernel forms the total gradients of both its results,
reading each G once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gas_ext.ops import library
from gas_ext.ops.fused_update import MAX_TERMS, fused_update, is_recorded, update_recorded
from gas_ext.ops.reference import FIRST_WEIGHT, UpdateResult

DATA, STATE = 0, 1  # results of a step, as autograd numbers them
SMALL = 65_536  # elements below which a tape costs more in Python than it saves in memory traffic


class SolveTape:
    """The updates of one solve; `update` stands in for `fused_update` there.

    Values and gradients are those of `fused_update`, in any number of backward passes; so are second
    derivatives. But a result in the middle of the solve does not see the part of its gradient that comes
    through later histories. So do not use a tape where autograd is asked afterwards for the gradient *of*
    such a result. Gradients *into* it are as good as any, and a hook or `retain_grad` that stands on it when
    a later history takes it, such as a network puts on its input, sees the whole gradient.

    Examples
    --------
    >>> x = torch.ones(2, 3, requires_grad=True)
    >>> tape = SolveTape()
    >>> first = tape.update([x], 4 * x, torch.tensor([0.0, 1.0, 1.0, 1.0, 0.5, 2.0]))
    >>> row = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.5, 2.0, 1.0])
    >>> last = tape.update([first.state, first.data], first.state, row)
    >>> torch.autograd.grad(last.state.sum(), x)[0][0]  # (0.5 + 2) 4 + 4
    tensor([14., 14., 14.])
    """

    def __init__(self) -> None:
        self._steps = 0
        self.kept: dict[int, _Kept] = {}  # by step: what earlier ones have still to gather from
        self._pass = -1  # autograd's number of the backward pass that did so

    def update(
        self,
        history: Sequence[Tensor],
        output: Tensor,
        coefficients: Tensor,
        *,
        guided: bool = False,
        next_input_dtype: torch.dtype | None = None,
    ) -> UpdateResult:
        """Compute one step, as `fused_update` does."""
        history = list(history)
        plain = (
            torch.compiler.is_compiling()
            or not history
            or history[0].numel() < SMALL
            or not library.has_kernels(history[0].device)
            or not is_recorded(history, output, coefficients)
        )
        if plain:
            return fused_update(
                history, output, coefficients, guided=guided, next_input_dtype=next_input_dtype
            )
        step = _Step(self, self._steps, history)
        result = update_recorded(history, output, coefficients, guided, next_input_dtype, step=step)
        step.enter()
        self._steps += 1
        return result

    def begin_pass(self) -> None:
        """Forget what an earlier backward pass left, one that did not go through all steps."""
        current = torch._C._current_graph_task_id()
        if current != self._pass:
            self.kept.clear()
            self._pass = current


class _Use(NamedTuple):
    """That a later step holds a result in its history, with its weight at `place` of its coefficients."""

    step: int
    result: int  # DATA or STATE
    place: int


class _Kept(NamedTuple):
    """G of a step and its coefficients, float64."""

    gradient: Tensor
    coefficients: Tensor
    needed_by: set[int]  # earlier steps


class _Step:
    """One step of a tape; autograd's node of the step holds it."""

    def __init__(self, tape: SolveTape, number: int, history: list[Tensor]) -> None:
        self.tape = tape
        self.number = number
        self.uses: list[_Use] = []
        self.gathered: dict[int, tuple[_Step, int]] = {}  # by term: whose result it is, and which
        # The gradient of x_n, the first term, takes H too: it goes the ordinary way.
        for k, tensor in enumerate(history[1:], 1):
            step, result = getattr(tensor.grad_fn, "step", None), tensor.output_nr
            if (
                isinstance(step, _Step)
                and step.tape is tape
                and result in (DATA, STATE)  # no next input
                and len(step.uses) < MAX_TERMS  # as many as can be gathered from
                and not _is_watched(tensor)
                and (step, result) not in self.gathered.values()  # a tensor that stands there twice
            ):
                self.gathered[k] = (step, result)

    def enter(self) -> None:
        """Tell the earlier steps who uses their results."""
        for k, (step, result) in self.gathered.items():
            step.uses.append(_Use(self.number, result, FIRST_WEIGHT + k))

    def gather(self, grad_data: Tensor | None, grad_state: Tensor | None) -> Sequence[Tensor | None]:
        """Return the total gradients of D_n and x_{n+1}."""
        self.tape.begin_pass()
        grads = [grad_data, grad_state]
        places: dict[int, list[int]] = {}
        for use in self.uses:
            if use.step in self.tape.kept:
                places.setdefault(use.step, [-1, -1])[use.result] = use.place
        if not places:
            return grads
        later = [self.tape.kept[number] for number in places]
        totals = torch.ops.gas_ext.gather_gradients(
            *grads,
            [kept.gradient for kept in later],
            [kept.coefficients for kept in later],
            [place[DATA] for place in places.values()],
            [place[STATE] for place in places.values()],
        )
        for result in (DATA, STATE):
            if any(place[result] >= 0 for place in places.values()):
                grads[result] = totals[result]
        for number, kept in zip(places, later, strict=True):
            kept.needed_by.discard(self.number)
            if not kept.needed_by:
                del self.tape.kept[number]
        return grads

    def keep(self, grad_state: Tensor | None, coefficients: Tensor) -> None:
        """Keep G for the earlier steps whose results this one used."""
        needed_by = {step.number for step, _ in self.gathered.values()}
        if grad_state is not None and needed_by:
            self.tape.kept[self.number] = _Kept(grad_state, coefficients.double(), needed_by)


def _is_watched(tensor: Tensor) -> bool:
    """Whether somebody wants to see the gradient of a result; that goes the ordinary way."""
    return bool(tensor._backward_hooks) or tensor.retains_grad
