"""A tape's gradients against those of the plain update: the same function, differentiated another way."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gas_ext.ops import fused_update, solve_backward
from gas_ext.ops.solve_backward import SolveTape

SHAPE = (2, 3, 4, 5)
STEPS, ORDER = 5, 3
Update = Callable[..., tuple[Tensor, Tensor, Tensor | None]]


@pytest.fixture(autouse=True)
def even_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solve_backward, "SMALL", 0)


class Problem:
    """Leaves of a small solve: noise, weights of a network, and a coefficient row for each step."""

    def __init__(
        self, device: torch.device, dtype: torch.dtype = torch.float64, guided: bool = False
    ) -> None:
        generator = torch.Generator().manual_seed(0)

        def leaf(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            values = torch.randn(shape, generator=generator, dtype=torch.float64) / 2
            return values.to(device, dtype).requires_grad_()

        self.noise = leaf(*SHAPE)
        self.weight = leaf(3, 3)
        self.rows = [
            leaf(5 + min(n + 1, ORDER) + min(n, ORDER - 1), dtype=torch.float64) for n in range(STEPS)
        ]
        self.guided = guided
        self.seeds = [leaf(*SHAPE).detach() for _ in range(2 * STEPS)]

    @property
    def leaves(self) -> list[Tensor]:
        return [self.noise, self.weight, *self.rows]

    def network(self, x: Tensor) -> Tensor:
        x = torch.cat([x, 2 * x]) if self.guided else x
        return torch.einsum("bchw,cd->bdhw", x.sin(), self.weight)

    def solve(
        self,
        update: Update,
        network: Callable[[Tensor], Tensor] | None = None,
        low: torch.dtype | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """All states and data predictions, the newest first."""
        states, data = [self.noise], []
        seen = self.noise
        for row in self.rows:
            output = (network or self.network)(seen)
            history = states[:ORDER] + data[: ORDER - 1]
            result = update(history, output, row, guided=self.guided, next_input_dtype=low)
            states.insert(0, result.state)
            data.insert(0, result.data)
            seen = result.state if result.next_input is None else result.next_input.to(self.noise.dtype)
        return states, data

    def last(self, update: Update, **options: object) -> Tensor:
        return self.solve(update, **options)[0][0].square().sum()


def assert_same(actual: list[Tensor], expected: list[Tensor], dtype: torch.dtype = torch.float64) -> None:
    rtol = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.1}[dtype]
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=rtol, atol=rtol * e.abs().max().item())


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_same_gradients(device: torch.device, dtype: torch.dtype, guided: bool) -> None:
    problem = Problem(device, dtype, guided)
    expected = torch.autograd.grad(problem.last(fused_update), problem.leaves)
    tape = SolveTape()
    assert_same(torch.autograd.grad(problem.last(tape.update), problem.leaves), expected, dtype)
    assert not tape.kept  # all that was kept has been gathered


def test_it_gathers(device: torch.device) -> None:
    """Each step but the last gathers once, and writes no gradient of a later step's term."""
    problem = Problem(device)
    loss = problem.last(SolveTape().update)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True
    ) as profile:
        torch.autograd.grad(loss, problem.leaves)
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["gas_ext::gather_gradients"] == STEPS - 1
    assert counts["gas_ext::fused_update_backward"] == STEPS


@pytest.mark.parametrize("wanted", ["noise", "weight", "rows"])
def test_only_some_leaves(device: torch.device, wanted: str) -> None:
    problem = Problem(device)
    for leaf in problem.leaves:
        leaf.requires_grad_(False)
    chosen = getattr(problem, wanted)
    leaves = chosen if isinstance(chosen, list) else [chosen]
    for leaf in leaves:
        leaf.requires_grad_()
    expected = torch.autograd.grad(problem.last(fused_update), leaves)
    assert_same(torch.autograd.grad(problem.last(SolveTape().update), leaves), expected)


def test_only_some_leaves_of_a_graph_with_more(device: torch.device) -> None:
    problem = Problem(device)
    for leaves in ([problem.noise], problem.rows[:1], problem.rows[2:4], [problem.weight]):
        expected = torch.autograd.grad(problem.last(fused_update), leaves)
        assert_same(torch.autograd.grad(problem.last(SolveTape().update), leaves), expected)


def test_gradients_into_every_intermediate_result(device: torch.device) -> None:
    problem = Problem(device)

    def loss(update: Update) -> Tensor:
        states, data = problem.solve(update)
        return sum((s * t).sum() for s, t in zip(problem.seeds, states[:-1] + data, strict=True))

    expected = torch.autograd.grad(loss(fused_update), problem.leaves)
    assert_same(torch.autograd.grad(loss(SolveTape().update), problem.leaves), expected)


def test_gradient_of_one_intermediate_result_after_another_pass(device: torch.device) -> None:
    """What a pass that ends early has kept must not leak into the next, which begins in the middle."""
    problem = Problem(device)
    expected_states, expected_data = problem.solve(fused_update)
    states, data = problem.solve(SolveTape().update)
    pairs = [(states[0], expected_states[0]), (states[2], expected_states[2]), (data[3], expected_data[3])]
    for actual, expected in [*pairs, *pairs]:
        torch.autograd.grad(
            states[0].sum(), problem.rows[-1], retain_graph=True
        )  # goes through one step only
        grads = [
            torch.autograd.grad(x.sum(), problem.leaves, retain_graph=True, allow_unused=True)
            for x in (actual, expected)
        ]
        assert [g is None for g in grads[0]] == [g is None for g in grads[1]]
        assert_same([g for g in grads[0] if g is not None], [g for g in grads[1] if g is not None])


def test_a_pass_that_failed_leaves_nothing_behind(device: torch.device) -> None:
    problem = Problem(device)
    broken = [True]

    class Breaks(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, grad: Tensor) -> Tensor:
            if broken[0]:
                raise ArithmeticError("broken")
            return grad

    calls: list[int] = []

    def network(x: Tensor) -> Tensor:
        calls.append(0)
        return problem.network(Breaks.apply(x) if len(calls) == 3 else x)

    loss = problem.last(SolveTape().update, network=network)
    with pytest.raises(ArithmeticError):
        torch.autograd.grad(loss, problem.leaves, retain_graph=True)
    broken[0] = False
    expected = torch.autograd.grad(problem.last(fused_update), problem.leaves)
    assert_same(torch.autograd.grad(loss, problem.leaves), expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_with_recomputed_network(device: torch.device, reentrant: bool) -> None:
    problem = Problem(device)

    def network(x: Tensor) -> Tensor:
        return checkpoint(problem.network, x, use_reentrant=reentrant)

    expected = torch.autograd.grad(problem.last(fused_update), problem.leaves)
    problem.last(SolveTape().update, network=network).backward()  # reentrant checkpoints refuse autograd.grad
    assert_same([leaf.grad for leaf in problem.leaves], expected)


def test_with_the_whole_solve_recomputed(device: torch.device) -> None:
    problem = Problem(device)
    expected = torch.autograd.grad(problem.last(fused_update), problem.leaves)
    loss = checkpoint(lambda _: problem.last(SolveTape().update), problem.noise, use_reentrant=False)
    assert_same(torch.autograd.grad(loss, problem.leaves), expected)


@pytest.mark.parametrize("low", [torch.float64, torch.float32])
def test_with_next_inputs(device: torch.device, low: torch.dtype) -> None:
    problem = Problem(device)
    expected = torch.autograd.grad(problem.last(fused_update, low=low), problem.leaves)
    actual = torch.autograd.grad(problem.last(SolveTape().update, low=low), problem.leaves)
    assert_same(actual, expected, torch.float64 if low == torch.float64 else torch.float32)


def test_network_that_hides_the_state(device: torch.device) -> None:
    """Without an edge through the network the steps still come in their order."""
    problem = Problem(device)

    def network(x: Tensor) -> Tensor:
        return problem.network(x.detach())

    expected = torch.autograd.grad(problem.last(fused_update, network=network), problem.leaves)
    assert_same(
        torch.autograd.grad(problem.last(SolveTape().update, network=network), problem.leaves), expected
    )


def test_a_result_that_stands_twice_in_a_history(device: torch.device) -> None:
    problem = Problem(device)
    row = problem.rows[-1]  # five terms

    def loss(update: Update) -> Tensor:
        first = update([problem.noise], problem.network(problem.noise), problem.rows[0])
        second = update([first.state, problem.noise, first.data], first.state.sin(), problem.rows[1])
        history = [second.state, first.state, first.state, first.data, second.state]
        return update(history, second.state.sin(), row).state.square().sum()

    leaves = [problem.noise, problem.weight, *problem.rows[:2], row]
    expected = torch.autograd.grad(loss(fused_update), leaves)
    assert_same(torch.autograd.grad(loss(SolveTape().update), leaves), expected)


def row_of(history: list[Tensor], dtype: torch.dtype = torch.float64) -> Tensor:
    """Some coefficients for a history, the next input's scale among them."""
    return torch.linspace(0.3, 0.9, 5 + len(history), dtype=dtype, device=history[0].device)


def a_next_input_in_a_history(x: Tensor, update: Update) -> Tensor:
    first = update([x], x.sin(), row_of([x]), next_input_dtype=x.dtype)
    history = [first.state, first.next_input, first.data]
    return update(history, first.state.sin(), row_of(history)).state


def a_step_whose_next_input_alone_is_used(x: Tensor, update: Update) -> Tensor:
    x = x.float()
    first = update([x], x.sin().bfloat16(), row_of([x]))
    history = [first.state, first.data, x]
    output = first.state.sin().bfloat16()
    last = update(history, output, row_of(history), next_input_dtype=torch.bfloat16)
    return last.next_input.double()


def rows_of_two_dtypes(x: Tensor, update: Update) -> Tensor:
    states, data = [x], []
    for dtype in (torch.float64, torch.float32, torch.float64):
        history = [*states, *data]
        result = update(history, states[0].sin(), row_of(history, dtype) / 2)
        states.insert(0, result.state)
        data.insert(0, result.data)
    return states[0]


def more_later_steps_than_a_history_has_terms(x: Tensor, update: Update) -> Tensor:
    first = latest = update([x], x.sin(), row_of([x]))
    for _ in range(70):
        history = [latest.state, first.state, first.data]
        latest = update(history, latest.state.sin(), row_of(history) / 2)
    return latest.state


@pytest.mark.parametrize(
    "solve",
    [
        a_next_input_in_a_history,
        a_step_whose_next_input_alone_is_used,
        rows_of_two_dtypes,
        more_later_steps_than_a_history_has_terms,
    ],
)
def test_what_no_sampler_does(device: torch.device, solve: Callable[[Tensor, Update], Tensor]) -> None:
    x = Problem(device).noise
    expected, actual = (
        torch.autograd.grad(solve(x, update).sum(), x) for update in (fused_update, SolveTape().update)
    )
    # A tape rounds less of a half-precision gradient.
    half = solve is a_step_whose_next_input_alone_is_used
    assert_same(actual, expected, torch.bfloat16 if half else torch.float64)


@pytest.mark.parametrize("watch", ["hook", "retain_grad"])
def test_a_network_that_watches_the_gradient_of_its_input(device: torch.device, watch: str) -> None:
    found: list[list[Tensor]] = []
    for update in (fused_update, SolveTape().update):
        problem = Problem(device)
        seen: list[Tensor] = []

        def halved(grad: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(grad)
            return grad / 2

        def network(
            x: Tensor, problem: Problem = problem, seen: list[Tensor] = seen, hook: Callable = halved
        ) -> Tensor:
            if watch == "hook":
                x.register_hook(hook)
            else:
                x.retain_grad()
                seen.append(x)
            return problem.network(x)

        problem.last(update, network=network).backward()
        assert len(seen) == STEPS
        gradients = seen if watch == "hook" else [x.grad for x in seen]
        found.append([*gradients, *(leaf.grad for leaf in problem.leaves)])
    assert_same(found[1], found[0])


def test_a_network_that_asks_for_a_gradient_itself(device: torch.device) -> None:
    """As classifier guidance does, on the state that it is given."""
    problem = Problem(device)

    def network(x: Tensor) -> Tensor:
        (push,) = torch.autograd.grad(x.sin().square().sum(), x, create_graph=True)
        return problem.network(x) + 0.1 * push

    expected = torch.autograd.grad(problem.last(fused_update, network=network), problem.leaves)
    actual = torch.autograd.grad(problem.last(SolveTape().update, network=network), problem.leaves)
    assert_same(actual, expected)


@pytest.mark.parametrize("ended", ["no pass", "a pass", "a pass that ended early"])
def test_memory_returns_without_the_garbage_collector(device: torch.device, ended: str) -> None:
    problem = Problem(device)
    tape = SolveTape()
    states, data = problem.solve(tape.update)
    loss = states[0].square().sum()
    gc.collect()
    gc.disable()
    try:
        if ended != "no pass":
            leaves = problem.leaves if ended == "a pass" else problem.rows[-1:]
            torch.autograd.grad(loss, leaves)
        kept = [weakref.ref(kept.gradient) for kept in tape.kept.values()]
        assert bool(kept) == (ended == "a pass that ended early")
        references = [weakref.ref(tape), *kept, *map(weakref.ref, states[:-1]), *map(weakref.ref, data)]
        del tape, states, data, loss
        assert [reference() for reference in references] == [None] * len(references)
    finally:
        gc.enable()


def test_first_and_second_derivatives_numerically(device: torch.device) -> None:
    problem = Problem(device)
    leaves = [problem.noise.detach()[:1, :, :1, :2].clone().requires_grad_(), problem.weight, *problem.rows]

    def function(noise: Tensor, weight: Tensor, *rows: Tensor) -> Tensor:
        problem.noise, problem.weight, problem.rows = noise, weight, list(rows)
        return problem.last(SolveTape().update)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_same_bits_every_time(device: torch.device) -> None:
    problem = Problem(device, torch.float32)
    first, second = (torch.autograd.grad(problem.last(SolveTape().update), problem.leaves) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_without_gradients_it_is_the_plain_update(device: torch.device) -> None:
    problem = Problem(device)
    with torch.no_grad():
        expected, actual = problem.last(fused_update), problem.last(SolveTape().update)
    assert torch.equal(actual, expected)


def test_compiles_into_one_graph(device: torch.device) -> None:
    torch._dynamo.reset()
    problem = Problem(device)
    compiled = torch.compile(lambda: problem.last(SolveTape().update), fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(problem.last(fused_update), problem.leaves)
    assert_same(torch.autograd.grad(compiled(), problem.leaves), expected)


def test_gathering_operator(device: torch.device) -> None:
    """The operator against its equation, in any memory order, and as torch wants operators."""
    generator = torch.Generator().manual_seed(0)
    later = [torch.randn(SHAPE, generator=generator).to(device) for _ in range(3)]
    later[1] = later[1].to(memory_format=torch.channels_last)
    rows = [torch.randn(7, generator=generator, dtype=torch.float64).to(device) for _ in range(3)]
    grad = torch.randn(SHAPE, generator=generator).to(device)
    gather = torch.ops.gas_ext.gather_gradients.default
    data, state = gather(grad, None, later, rows, [-1, 6, 5], [5, -1, 6])
    torch.testing.assert_close(data, (grad + rows[1][6] * later[1] + rows[2][5] * later[2]).float())
    torch.testing.assert_close(state, (rows[0][5] * later[0] + rows[2][6] * later[2]).float())
    arguments = (grad, None, later, rows, [-1, 6, 5], [-1, -1, -1])
    torch.library.opcheck(gather, arguments, test_utils=("test_schema", "test_faketensor"))
    for wrong in (
        (grad, None, [], [], [], []),
        (grad, None, later, rows[:2], [5, 5, 5], [5, 5, 5]),
        (grad, None, later, rows, [7, 5, 5], [5, 5, 5]),
        (grad, None, later, [row.repeat(20) for row in rows], [69, 5, 5], [5, 5, 5]),
        (grad[:1], None, later, rows, [5, 5, 5], [5, 5, 5]),
        (grad.double(), None, later, rows, [5, 5, 5], [5, 5, 5]),
    ):
        with pytest.raises(RuntimeError, match="gas_ext"):
            gather(*wrong)
