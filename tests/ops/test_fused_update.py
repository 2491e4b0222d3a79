"""The compiled update against its pure-torch reference, and as a torch operator."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from update_inputs import (
    DTYPE_PAIRS,
    STATE_DTYPES,
    assert_as_good_as_torch,
    atol_of,
    gradients,
    make_inputs,
    to_float64,
)

from gas_ext.ops import fused_update, fused_update_reference, library
from gas_ext.ops.fused_update import MAX_TERMS

SHAPES = [(), (0, 3), (1,), (2, 3), (17,), (3, 5, 7), (2, 4, 31, 33), (2, 2, 3, 4, 5)]


def test_kernels_are_loaded(device: torch.device) -> None:
    """The rest of this file would pass on the fallback too; here it must be the compiled operator."""
    assert library.has_kernels(device), library.info()


@pytest.mark.parametrize(("dtype", "output_dtype"), DTYPE_PAIRS)
@pytest.mark.parametrize(
    ("shape", "guided"), [(shape, False) for shape in SHAPES] + [(shape, True) for shape in SHAPES if shape]
)
def test_forward_matches_reference(
    device: torch.device, shape: tuple[int, ...], dtype: torch.dtype, output_dtype: torch.dtype, guided: bool
) -> None:
    inputs = make_inputs(shape, guided=guided, dtype=dtype, output_dtype=output_dtype, device=device)
    result = fused_update(*inputs, guided=guided, next_input_dtype=output_dtype)
    same_dtype = fused_update_reference(*inputs, guided=guided, next_input_dtype=output_dtype)
    exact = fused_update_reference(*to_float64(*inputs), guided=guided, next_input_dtype=torch.float64)
    for name, value, reference, truth in zip(result._fields, result, same_dtype, exact, strict=True):
        assert value is not None
        assert value.dtype == (output_dtype if name == "next_input" else dtype)
        assert value.shape == torch.Size(shape)
        assert_as_good_as_torch(value, reference, truth, atol_of(value.dtype))


@pytest.mark.parametrize("terms", [1, 2, 8, 9, 20, MAX_TERMS])
def test_any_number_of_terms(device: torch.device, terms: int) -> None:
    inputs = make_inputs((3, 50), terms=terms, dtype=torch.float64, device=device)
    for actual, expected in zip(
        gradients(fused_update_outputs, inputs), gradients(reference_outputs, inputs), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("terms", [6, 11, 23])
@pytest.mark.parametrize(("dtype", "output_dtype"), DTYPE_PAIRS)
def test_many_terms_over_many_elements(
    device: torch.device, terms: int, dtype: torch.dtype, output_dtype: torch.dtype
) -> None:
    """The CPU kernels walk many terms in groups, tile by tile."""
    inputs = make_inputs((2, 12_345), terms, True, dtype, output_dtype, device=device)
    result = fused_update(*inputs, guided=True, next_input_dtype=output_dtype)
    same_dtype = fused_update_reference(*inputs, guided=True, next_input_dtype=output_dtype)
    exact = fused_update_reference(*to_float64(*inputs), guided=True, next_input_dtype=torch.float64)
    for value, reference, truth in zip(result, same_dtype, exact, strict=True):
        assert value is not None  # float64's own formula has no error here: rounding grows with the terms
        assert_as_good_as_torch(value, reference, truth, terms / 2 * atol_of(value.dtype))


@pytest.mark.parametrize("terms", [5, 6, 10, 11, 23])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_elements_do_not_depend_on_their_neighbors(
    device: torch.device, terms: int, dtype: torch.dtype
) -> None:
    """Pieces of a tensor, each within a tile, come out as they do in the whole."""
    history, output, coefficients = make_inputs((40_000,), terms, dtype=dtype, device=device)

    def run(part: slice) -> list[Tensor]:
        past, network = [tensor[part].clone() for tensor in history], output[part].clone()
        update = fused_update(past, network, coefficients)
        gradients, of_output, _ = torch.ops.gas_ext.fused_update_backward(
            past[-1], network, None, past, network, None, coefficients, False, [*range(terms)], True, True
        )
        return [update.data, update.state, *gradients, of_output]

    pieces = [run(slice(begin, begin + 5_000)) for begin in range(0, 40_000, 5_000)]
    for whole, *parts in zip(run(slice(None)), *pieces, strict=True):
        assert torch.equal(whole, torch.cat(parts))


def fused_update_outputs(history: list[Tensor], output: Tensor, coefficients: Tensor) -> tuple[Tensor, ...]:
    return tuple(fused_update(history, output, coefficients))[:2]  # type: ignore[return-value]


def reference_outputs(history: list[Tensor], output: Tensor, coefficients: Tensor) -> tuple[Tensor, ...]:
    return tuple(fused_update_reference(history, output, coefficients))[:2]  # type: ignore[return-value]


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    shape=st.lists(st.integers(0, 6), min_size=1, max_size=5).map(tuple),
    terms=st.integers(1, 12),
    guided=st.booleans(),
    dtype=st.sampled_from(STATE_DTYPES),
    layouts=st.lists(
        st.sampled_from(["dense", "transposed", "sliced", "expanded", "offset"]), min_size=14, max_size=14
    ),
)
def test_any_strides(
    device: torch.device,
    shape: tuple[int, ...],
    terms: int,
    guided: bool,
    dtype: torch.dtype,
    layouts: list[str],
) -> None:
    history, output, coefficients = make_inputs(shape, terms, guided, dtype, device=device)
    history = [with_layout(t, layout) for t, layout in zip(history, layouts, strict=False)]
    output = with_layout(output, layouts[-1])
    result = fused_update(history, output, coefficients, guided=guided, next_input_dtype=dtype)
    expected = fused_update_reference(history, output, coefficients, guided=guided, next_input_dtype=dtype)
    for value, reference in zip(result, expected, strict=True):
        torch.testing.assert_close(
            value, reference, rtol=2e-2 if dtype.itemsize == 2 else 1e-5, atol=4 * atol_of(dtype)
        )


def with_layout(tensor: Tensor, layout: str) -> Tensor:
    """Values of a tensor (of its first slice, for "expanded") in another memory order."""
    if layout == "transposed":
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "sliced":
        padded = tensor.new_empty(*tensor.shape[:-1], 2 * tensor.shape[-1])
        padded[..., ::2] = tensor
        return padded[..., ::2]
    if layout == "expanded" and tensor.shape[0] > 0:
        return tensor[:1].expand_as(tensor)
    if layout == "offset":
        flat = tensor.new_empty(tensor.numel() + 1)
        flat[1:] = tensor.flatten()
        return flat[1:].view(tensor.shape)
    return tensor


def test_channels_last_is_kept_and_not_copied(device: torch.device) -> None:
    history, output, coefficients = make_inputs((2, 3, 8, 8), device=device)
    expected = fused_update(history, output, coefficients)
    history = [t.contiguous(memory_format=torch.channels_last) for t in history]
    output = output.contiguous(memory_format=torch.channels_last)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        result = fused_update(history, output, coefficients)
    assert "aten::copy_" not in {event.key for event in profile.key_averages()}
    assert result.state.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result.state, expected.state, rtol=0, atol=0)
    torch.testing.assert_close(result.data, expected.data, rtol=0, atol=0)


def test_guided_halves_are_views(device: torch.device) -> None:
    history, output, coefficients = make_inputs((4, 3, 8, 8), guided=True, device=device)
    leaf = output.requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        fused_update(history, leaf, coefficients, guided=True).state.sum().backward()
    # The gradient of sum() is an expanded scalar: one copy makes it dense. Nothing else is copied.
    copies = {event.key: event.count for event in profile.key_averages()}.get("aten::copy_", 0)
    assert copies == 1
    assert leaf.grad is not None
    assert leaf.grad.shape == output.shape


def test_float32_coefficients(device: torch.device) -> None:
    history, output, coefficients = make_inputs((5, 7), device=device)
    inputs = (history, output, coefficients.float())
    for actual, expected in zip(
        gradients(fused_update_outputs, inputs), gradients(reference_outputs, inputs), strict=True
    ):
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", STATE_DTYPES)
def test_opcheck(device: torch.device, dtype: torch.dtype) -> None:
    history, output, coefficients = make_inputs((3, 2, 5), dtype=dtype, device=device)
    ops = torch.ops.gas_ext
    torch.library.opcheck(ops.fused_update.default, (history, output, coefficients, False, dtype))
    torch.library.opcheck(ops.fused_update.default, (history, output, coefficients, False, None))
    out = [torch.empty_like(history[0]) for _ in range(3)]
    torch.library.opcheck(ops.fused_update_out.default, (history, output, coefficients, False, *out))
    leaves = [t.requires_grad_() for t in history]
    arguments = (output, output, output, leaves, output, output, coefficients, False, [0, 2], True, True)
    # float64 alone differentiates the backward operator: the others would compare rounded second derivatives.
    checks = ("test_schema", "test_faketensor") + (
        ("test_autograd_registration", "test_aot_dispatch_dynamic") if dtype == torch.float64 else ()
    )
    torch.library.opcheck(ops.fused_update_backward.default, arguments, test_utils=checks)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("guided", [False, True])
def test_fake_kernels_agree(device: torch.device, memory_format: torch.memory_format, guided: bool) -> None:
    """Shape, dtype and strides of the fakes, for outputs of another memory order too."""
    history, output, coefficients = make_inputs((2, 3, 4, 5), guided=guided, device=device)
    history = [t.contiguous(memory_format=memory_format) for t in history]
    for sample in ((history, output, coefficients), (history[::-1], output.double(), coefficients)):
        arguments = (sample[0], sample[1].float(), sample[2], guided, torch.float32)
        torch.library.opcheck(
            torch.ops.gas_ext.fused_update.default, arguments, test_utils=("test_schema", "test_faketensor")
        )


def test_out_writes_into_given_memory(device: torch.device) -> None:
    history, output, coefficients = make_inputs((3, 5), device=device)
    expected = fused_update(history, output, coefficients, next_input_dtype=torch.float32)
    out = tuple(torch.empty(3, 5, device=device) for _ in range(3))
    result = fused_update(history, output, coefficients, out=out)  # type: ignore[arg-type]
    for target, returned, value in zip(out, result, expected, strict=True):
        assert returned is target
        torch.testing.assert_close(target, value, rtol=0, atol=0)
    strided = (torch.empty(5, 3, device=device).t(), torch.empty(3, 10, device=device)[:, ::2])
    fused_update(history, output, coefficients, out=strided)
    torch.testing.assert_close(strided[1], expected.state, rtol=0, atol=0)


def test_out_refuses_aliasing(device: torch.device) -> None:
    history, output, coefficients = make_inputs((3, 5), device=device)
    free = torch.empty(3, 5, device=device)
    for target in (history[2], output, output.view(-1)[:15].view(3, 5)):
        with pytest.raises(ValueError, match="shares memory"):
            fused_update(history, output, coefficients, out=(free, target))
        with pytest.raises(RuntimeError, match="shares memory"):
            torch.ops.gas_ext.fused_update_out(history, output, coefficients, False, free, target, None)
    with pytest.raises(ValueError, match="shares memory"):
        fused_update(history, output, coefficients, out=(free, free))
    with pytest.raises(ValueError, match="no_grad"):
        fused_update(
            [t.requires_grad_() for t in history], output, coefficients, out=(free, torch.empty_like(free))
        )


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda h, m, c: ([], m, c), ValueError, "0 tensors"),
        (lambda h, m, c: (h[:1] * 65, m, c), ValueError, "65 tensors"),
        (lambda h, m, c: ([t.long() for t in h], m, c), TypeError, "int64"),
        (lambda h, m, c: ([h[0], h[1].half(), h[2]], m, c), TypeError, r"history\[1\]"),
        (lambda h, m, c: ([h[0], h[1][:1], h[2]], m, c), ValueError, "one shape"),
        (lambda h, m, c: (h, m[:1], c), ValueError, "The output has shape"),
        (lambda h, m, c: (h, m.long(), c), TypeError, "The output is"),
        (lambda h, m, c: (h, m, c[:-1]), ValueError, "5 \\+ 3"),
        (lambda h, m, c: (h, m, c.half()), TypeError, "The coefficients are"),
        (lambda h, m, c: (h, m.to("meta"), c), ValueError, "The output is on meta"),
        (lambda h, m, c: ([h[0], h[1], h[2].to("meta")], m, c), ValueError, "meta"),
    ],
)
def test_rejects_wrong_arguments(
    device: torch.device, change: Callable[..., tuple], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        fused_update(*change(*make_inputs((2, 3), device=device)))


def test_guided_needs_a_doubled_batch(device: torch.device) -> None:
    history, output, coefficients = make_inputs((2, 3), device=device)
    with pytest.raises(ValueError, match="unconditional half first"):
        fused_update(history, output, coefficients, guided=True)
    scalars, scalar, row = make_inputs((), device=device)
    with pytest.raises(ValueError, match="batch dimension"):
        fused_update(scalars, scalar, row, guided=True)


def test_dtype_pairs_without_a_kernel_are_converted(device: torch.device) -> None:
    history, output, coefficients = make_inputs(
        (2, 3), dtype=torch.float16, output_dtype=torch.float32, device=device
    )
    result = fused_update(history, output, coefficients, next_input_dtype=torch.bfloat16)
    assert result.state.dtype == torch.float16
    assert result.next_input is not None
    assert result.next_input.dtype == torch.bfloat16
    expected = fused_update_reference(history, output.half(), coefficients)
    torch.testing.assert_close(result.state, expected.state, rtol=2e-3, atol=4e-3)


def test_autocast_keeps_the_state_dtype(device: torch.device) -> None:
    history, output, coefficients = make_inputs((2, 3), device=device)
    plain = fused_update(history, output.bfloat16(), coefficients)
    with torch.autocast(device.type, torch.bfloat16):
        result = fused_update(history, output.bfloat16(), coefficients)
    assert result.state.dtype == torch.float32
    torch.testing.assert_close(result.state, plain.state, rtol=0, atol=0)


@pytest.mark.slow
def test_compiles_into_one_graph(device: torch.device) -> None:
    torch._dynamo.reset()
    history, output, coefficients = make_inputs((2, 3), dtype=torch.float64, device=device)
    leaves = [t.requires_grad_() for t in (*history, output, coefficients)]

    def two_steps(*leaves: Tensor) -> Tensor:
        *past, m, row = leaves
        first = fused_update(past, m.sin(), row, next_input_dtype=torch.float32)
        assert first.next_input is not None
        return fused_update([first.state, *past[1:]], first.next_input.double().cos(), row).state

    compiled = torch.compile(two_steps, fullgraph=True, backend="aot_eager")
    expected, actual = two_steps(*leaves), compiled(*leaves)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    for a, e in zip(
        torch.autograd.grad(actual.sum(), leaves), torch.autograd.grad(expected.sum(), leaves), strict=True
    ):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


FINGERPRINT = """
import hashlib, sys, torch
from gas_ext.ops import fused_update
torch.set_num_threads(int(sys.argv[1]))
digest = hashlib.sha256()
for state, network in (("float64", "float64"), ("float32", "float32"), ("float32", "float16"),
                       ("float32", "bfloat16"), ("float16", "float16"), ("bfloat16", "bfloat16")):
    state, network = getattr(torch, state), getattr(torch, network)
    g = torch.Generator().manual_seed(1)
    n = 100_003
    history = [torch.randn(n, generator=g).to(state).requires_grad_() for _ in range(13)]
    output = torch.randn(2 * n, generator=g).to(network).requires_grad_()
    row = torch.randn(18, generator=g, dtype=torch.float64).requires_grad_()
    result = fused_update(history, output, row, guided=True, next_input_dtype=network)
    loss = sum((r.double() * torch.arange(n).remainder(7)).sum() for r in result)
    loss.backward()
    for t in (*result, row.grad, output.grad, *(h.grad for h in history)):
        digest.update(t.detach().contiguous().view(torch.uint8).numpy().tobytes())
print(digest.hexdigest())
"""


def fingerprint(threads: int, isa: str) -> str:
    """Hash of every forward and backward result in a fresh process."""
    environment = {**os.environ, "GAS_EXT_CPU_ISA": isa}
    done = subprocess.run(
        [sys.executable, "-c", FINGERPRINT, str(threads)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.process
def test_same_bits_for_any_thread_count_and_instruction_set() -> None:
    supported = library.build_info()["cpu_isas_supported"]
    expected = fingerprint(1, supported[-1])
    assert len(expected) == 64
    assert fingerprint(2, supported[-1]) == expected
    assert fingerprint(5, supported[-1]) == expected
    for isa in supported[:-1]:
        assert fingerprint(2, isa) == expected, f"{isa} differs from {supported[-1]}"


@pytest.mark.slow
@pytest.mark.parametrize("terms", [1, 2, 3, 4])
def test_compiles_for_any_number_of_terms(device: torch.device, terms: int) -> None:
    torch._dynamo.reset()
    history, output, coefficients = make_inputs((2, 3), terms, device=device)
    compiled = torch.compile(
        lambda *t: fused_update(t[2:], t[0], t[1]).state, fullgraph=True, backend="eager"
    )
    expected = fused_update(history, output, coefficients).state
    for gradient in (False, True):
        inputs = [t.requires_grad_(gradient) for t in (output, coefficients, *history)]
        torch.testing.assert_close(compiled(*inputs), expected, rtol=0, atol=0)
        same = compiled(history[0], coefficients, *history)  # an output that is a state
        assert same.shape == expected.shape


def test_float16_subnormals_survive_flushing(device: torch.device) -> None:
    x = torch.full((11,), 6e-8, dtype=torch.float16, device=device)
    row = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0], dtype=torch.float64, device=device)
    torch.set_flush_denormal(True)
    try:
        state = fused_update([x], torch.zeros_like(x), row).state
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(state, x)


@pytest.mark.slow
@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("dtype", STATE_DTYPES)
def test_writing_past_the_caches_gives_the_same_bits(dtype: torch.dtype, start: int) -> None:
    """A call too large for the caches against the same in pieces; from element 1 on no input is aligned."""
    piece, pieces = 32_768, 320  # 2 bytes x 6 tensors x 10.5 million: more than three times a cache of 32 MiB
    numel = piece * pieces
    history, output, coefficients = make_inputs((numel + start,), dtype=dtype, device=torch.device("cpu"))
    history, output = [t[start:] for t in history], output[start:]

    def results(at: slice) -> list[Tensor]:
        past, m = [h[at] for h in history], output[at]
        data, state, _ = torch.ops.gas_ext.fused_update(past, m, coefficients, False, None)
        grads, grad_output, _ = torch.ops.gas_ext.fused_update_backward(
            data, state, None, past, m, None, coefficients, False, [0, 2], True, True
        )
        return [data, state, *grads, grad_output]

    whole = results(slice(None))
    for i in range(0, pieces, 13):
        at = slice(i * piece, (i + 1) * piece)
        assert all(torch.equal(w[at], p) for w, p in zip(whole, results(at), strict=True))


def available_memory() -> int:
    """Bytes that can be had without swapping: free pages and what the page cache would give back."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


@pytest.mark.slow
@pytest.mark.skipif(available_memory() < 15e9, reason="needs 13 GB of memory for itself")
def test_more_than_2_to_the_31_elements() -> None:
    numel = 2**31 + 5
    x = torch.zeros(numel, dtype=torch.bfloat16)
    x[-3:] = torch.tensor([1.0, 2.0, 3.0])
    row = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.5, 2.0], dtype=torch.float64)
    with torch.no_grad():
        result = fused_update([x], x, row)
    assert result.data[-4:].tolist() == [0.0, 2.0, 4.0, 6.0]  # x + m
    assert result.state[-4:].tolist() == [0.0, 3.0, 6.0, 9.0]  # 0.5 (x + m) + 2 x
