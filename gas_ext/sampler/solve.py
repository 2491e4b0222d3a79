"""The steps of a solve: call the network, update, repeat."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gas_ext.denoisers import Condition, Denoiser, DenoiserFunction, check_device, check_output
from gas_ext.ops import fused_update
from gas_ext.ops.fused_update import check_update, operator_without_gradients
from gas_ext.solvers.coefficients import SolverCoefficients

if TYPE_CHECKING:
    from gas_ext.sampler.sampler import GASSampler


class PartialSolve:
    """The steps of a solve so far; see `GASSampler.begin`.

    Attributes
    ----------
    states : list of Tensor
        x_0, ..., x_n, of the noise's shape.
    data : list of Tensor
        D_0, ..., up to D_n once that has been evaluated.
    """

    def __init__(
        self,
        sampler: GASSampler,
        noise: Tensor,
        condition: Condition,
        *,
        table: SolverCoefficients | None = None,
        keep_all: bool = True,
    ) -> None:
        # Everything that a step needs is looked up once: nn.Module finds its submodules slowly.
        self._network, scale = sampler.denoiser, sampler.solver.schedule.init_noise_sigma
        self.states: list[Tensor] = [noise if scale == 1.0 else noise * scale]
        self.data: list[Tensor] = []
        self._condition = condition
        self._guided, self._recompute = sampler.guided, sampler.recompute
        self._counts = vars(sampler)  # a microsecond less than through nn.Module's own assignment
        self._shape = (2 * noise.shape[0], *noise.shape[1:]) if sampler.guided else noise.shape
        self._lower = _lower_input_dtype(self._network, noise)
        self._dtype = self._lower or noise.dtype  # of the network's input
        # With one table for all steps, and the same mode of autograd, the operator is called directly.
        self._terms = None if table is None else _history_terms(table)
        self._operator = None if table is None else operator_without_gradients(noise.device)
        self._keep_all = keep_all  # else those that later steps use, so that memory does not grow
        self._steps = 0
        self._input: Tensor | None = None  # of the network, where the last update has made it
        self._output: Tensor | None = None  # of the network, for the coming step

    def evaluate(self, table: SolverCoefficients) -> Tensor:
        """Evaluate the network for the coming step, unless that is done, and return D_n.

        D_n does not depend on the weights of the step: `advance` may be given other ones.

        Parameters
        ----------
        table : SolverCoefficients
            The coefficients of the solve, of which the times and the data prediction's p and q are used.

        Returns
        -------
        Tensor
            D_n, of the shape and dtype of the noise.

        Raises
        ------
        ValueError
            If all steps of the table have been made, or as `GASSampler` for device and network.
        """
        if self._output is None:
            output = self._call_network(self._time(table))
            self._output = output.clone()  # a network may reuse the memory of its output
            self.data.append(self._update(table, self._output, self.data, None)[0])
        return self.data[-1]

    def advance(self, table: SolverCoefficients) -> None:
        """Make the coming step by its row of the table; raises the errors of `evaluate`."""
        self._advance(table, self._time(table))

    def _time(self, table: SolverCoefficients) -> Tensor:
        if not isinstance(table, SolverCoefficients):
            raise TypeError(
                f"The table is a {type(table).__name__}, but must be what coefficients() returns."
            )
        if self._steps == len(table.rows):
            raise ValueError(f"All {self._steps} steps of this solve have been made; begin another one.")
        check_device(self.states[-1], table.timesteps.device)
        return table.evaluation_timesteps[self._steps].clone()  # a network may write into its time

    def _advance(self, table: SolverCoefficients, time: Tensor) -> None:
        states, data = self.states, self.data
        next_dtype = None if self._steps + 1 == len(table.rows) else self._lower
        if self._output is None:
            newest, state, next_input = self._update(table, self._call_network(time), data, next_dtype)
            data.append(newest)
        else:
            _, state, next_input = self._update(table, self._output, data[:-1], next_dtype)
            self._output = None
        states.append(state)
        self._input = None if next_dtype is None else next_input
        self._steps += 1
        if not self._keep_all:
            state_terms, data_terms = self._terms or _history_terms(table)
            if len(states) > state_terms:
                del states[0]
            if len(data) >= data_terms:
                del data[0]

    def _call_network(self, time: Tensor) -> Tensor:
        """Call the network once, on the doubled batch if guided."""
        x = self._input
        if x is None:
            x = self.states[-1] if self._lower is None else self.states[-1].to(self._lower)
        if self._guided:
            x = torch.cat([x, x])
        if self._recompute and torch.is_grad_enabled():
            output: Tensor = checkpoint(self._network, x, time, self._condition, use_reentrant=False)
        else:
            output = self._network(x, time, self._condition)
        if not torch.compiler.is_compiling():
            self._counts["evaluations"] += 1
        return output

    def _update(
        self, table: SolverCoefficients, output: Tensor, data: list[Tensor], next_dtype: torch.dtype | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Update with the states and the data predictions before D_n that the solver uses, newest first."""
        state_terms, data_terms = self._terms or _history_terms(table)
        history = self.states[: -state_terms - 1 : -1] + data[:-data_terms:-1]
        row = table.rows[self._steps]
        if self._operator is not None and getattr(output, "dtype", None) == self._dtype:
            try:
                return self._operator(history, output, row, self._guided, next_dtype)
            except (RuntimeError, TypeError):  # only now, at no cost for a valid step, name the fault
                check_output(output, self._shape)
                check_update(history, output, row, self._guided)
                raise
        check_output(output, self._shape)
        return fused_update(history, output, row, guided=self._guided, next_input_dtype=next_dtype)


def _lower_input_dtype(denoiser: DenoiserFunction, x: Tensor) -> torch.dtype | None:
    """Return the half precision to which the network would cast float32 states, if it declares one."""
    if x.dtype != torch.float32 or not isinstance(denoiser, Denoiser):
        return None
    dtype = denoiser.input_dtype
    if dtype not in (torch.float16, torch.bfloat16):
        return None
    # Autocast may let it answer in a higher precision, which the state's dtype would have preserved.
    device = x.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return None if autocast else dtype


def _history_terms(table: SolverCoefficients) -> tuple[int, int]:
    """Return how many states, and how many data predictions with the newest, a step uses at most."""
    return table.weights.state.shape[1], table.weights.data.shape[1]
