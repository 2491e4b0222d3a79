"""Measure the kernels on a device, and write one Markdown and one CSV file.

    python benchmarks/gpu_report.py --out report            # on a CUDA device
    python benchmarks/gpu_report.py --device cpu --quick    # the same rows on the CPU, to test the script

Rows: the update forward and backward, with a cold and a warm cache, its bandwidth relative to a copy measured
in the same run; peers (pure torch, torch.compile, a diffusers step); kernel launches per step; one CUDA graph
against separate launches; whole sampling with the embedded teacher. Not run on a GPU yet.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from performance_tables import markdown
from torch import Tensor

from gas_ext import GASSampler, GeneralizedSolver, NoiseSchedule
from gas_ext.ops import fused_update, fused_update_reference, has_kernels, info

SHAPES = {
    "CIFAR-10, batch 1": (1, 3, 32, 32),
    "CIFAR-10, batch 1024": (1024, 3, 32, 32),
    "SD latents, batch 8": (8, 4, 64, 64),
    "video latents": (2, 16, 21, 60, 104),
}
FLUSH_BYTES = 512 << 20  # larger than any second-level cache


@dataclass
class Row:
    """One measurement."""

    what: str
    implementation: str
    case: str
    dtype: str
    terms: int
    cache: str
    microseconds: float
    gigabytes_per_second: float | None = None
    share_of_copy: float | None = None
    note: str = ""


class Clock:
    """Times a function on a device: CUDA events there, the process clock on the CPU."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device = device
        self.repeats = repeats
        self.scratch = torch.empty(FLUSH_BYTES // (1 if device.type == "cuda" else 16), dtype=torch.uint8)
        self.scratch = self.scratch.to(device)

    def median(self, function: Callable[[], object], cold: bool = False) -> float:
        """Median microseconds of one call, after three calls to warm up."""
        for _ in range(3):
            function()
        return statistics.median(self._once(function, cold) for _ in range(self.repeats))

    def _once(self, function: Callable[[], object], cold: bool) -> float:
        if cold:
            self.scratch.fill_(0)
        if self.device.type != "cuda":
            start = time.perf_counter()
            function()
            return (time.perf_counter() - start) * 1e6
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        function()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e3


def make_inputs(
    shape: tuple[int, ...], terms: int, dtype: torch.dtype, device: torch.device
) -> tuple[list[Tensor], Tensor, Tensor]:
    """History, output and coefficients on the device."""
    history = [torch.randn(shape, device=device).to(dtype) for _ in range(terms)]
    row = torch.full((5 + terms,), 0.1, dtype=torch.float64, device=device)
    return history, torch.randn(shape, device=device).to(dtype), row


def copy_bandwidth(clock: Clock, bytes_moved: int, cold: bool) -> float:
    """GB/s of a copy that moves as many bytes (half read, half written)."""
    source = torch.ones(max(bytes_moved // 2, 1), dtype=torch.uint8, device=clock.device)
    target = torch.empty_like(source)
    return bytes_moved / clock.median(lambda: target.copy_(source), cold) / 1e3


def update_rows(clock: Clock, case: str, terms: int, dtype: torch.dtype) -> list[Row]:
    """Forward and backward of one size, for every implementation, cold and warm."""
    history, output, row = make_inputs(SHAPES[case], terms, dtype, clock.device)
    leaves = [t.clone().requires_grad_() for t in (*history, output, row)]
    size = output.numel() * output.element_size()
    forward_bytes = (terms + 3) * size  # histories, output; D_n, x_{n+1}
    backward_bytes = (2 * terms + 3 + (terms - 1 + 7) // 8) * size  # docs/kernels.md
    torch._dynamo.reset()  # one code object is compiled for every size and dtype
    compiled = torch.compile(fused_update_reference, fullgraph=True, dynamic=False)
    implementations = {"gas_ext": fused_update, "torch": fused_update_reference, "torch.compile": compiled}
    rows = []
    for cache in ("warm", "cold"):
        cold = cache == "cold"
        copies = {n: copy_bandwidth(clock, n, cold) for n in (forward_bytes, backward_bytes)}
        for name, update in implementations.items():

            def forward(update: Callable[..., tuple[Tensor, ...]] = update) -> object:
                with torch.no_grad():
                    return update(history, output, row)

            state = update(leaves[:-2], leaves[-2], leaves[-1])[1]
            gradient = torch.ones_like(state)

            def backward(state: Tensor = state, gradient: Tensor = gradient) -> object:
                return torch.autograd.grad(state, leaves, gradient, retain_graph=True)

            for what, function, moved in (
                ("forward", forward, forward_bytes),
                ("backward", backward, backward_bytes),
            ):
                micro = clock.median(function, cold)
                speed = moved / micro / 1e3
                share = speed / copies[moved]
                rows.append(Row(what, name, case, str(dtype)[6:], terms, cache, micro, speed, share))
    return rows


def free_sampler(device: torch.device, steps: int = 4) -> GASSampler:
    """A sampler whose network costs nothing, which leaves the solver's own time."""
    solver = GeneralizedSolver(NoiseSchedule.vp_linear(), steps=steps).to(device)
    return GASSampler(solver, lambda x, t, condition: x, prediction_type="sample")


def solver_rows(clock: Clock, case: str) -> list[Row]:
    """A whole solve with a free network, its launches, one CUDA graph of it, and diffusers' solver."""
    noise = torch.randn(SHAPES[case], device=clock.device)
    sampler = free_sampler(clock.device)

    def row(implementation: str, microseconds: float) -> Row:
        return Row("solve, free network", implementation, case, "float32", 4, "warm", microseconds)

    with torch.no_grad():
        rows = [
            row("gas_ext", clock.median(lambda: sampler(noise))),
            row("diffusers", diffusers_solve(clock, noise)),
        ]
        if clock.device.type == "cuda":
            rows[0].note = f"{count_launches(lambda: sampler(noise))} launches"
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                sampler(noise)
            rows.append(row("gas_ext, CUDA graph", clock.median(graph.replay)))
    return rows


def count_launches(function: Callable[[], object]) -> int:
    """Kernels on the device during one call, from the profiler."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        function()
        torch.cuda.synchronize()
    return sum(event.count for event in profile.key_averages() if "gas_ext" in event.key)


def diffusers_solve(clock: Clock, noise: Tensor) -> float:
    """Microseconds of a four-step DPM-Solver++ solve by diffusers with a free network."""
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(solver_order=3, prediction_type="sample")

    def solve() -> Tensor:
        scheduler.set_timesteps(4, device=noise.device)
        x = noise
        for t in scheduler.timesteps:
            x = scheduler.step(x, t, x).prev_sample
        return x

    return clock.median(solve)


def sampling_rows(clock: Clock, batch: int) -> list[Row]:
    """End to end: the embedded teacher with its learned four-step solver."""
    sampler = GASSampler.from_pretrained("demo", clock.device)
    noise = torch.randn(batch, 1, 32, 32, device=clock.device)
    labels = torch.arange(batch, device=clock.device) % 10
    with torch.no_grad():
        micro = clock.median(lambda: sampler(noise, labels))
    return [Row("sampling, embedded teacher", "gas_ext", f"batch {batch}", "float32", 4, "warm", micro)]


def write_report(rows: list[Row], device: torch.device, out: Path) -> None:
    """Write OUT.csv and OUT.md."""
    names = [field.name for field in fields(Row)]
    with out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    lines = [f"# gas_ext on {name}", "", f"torch {torch.__version__}, CUDA {torch.version.cuda}", ""]
    lines += [f"CUDA operators: {info()['cuda_operators']}", ""]
    lines.append(markdown(names, ([_text(value) for value in asdict(row).values()] for row in rows)))
    out.with_suffix(".md").write_text("\n".join(lines) + "\n")


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "" if value is None else str(value)


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: cuda)")
    parser.add_argument("--out", type=Path, default=Path("gpu_report"), help="path without suffix")
    parser.add_argument("--quick", action="store_true", help="two small sizes and few repeats")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device was found; run on a machine with one, or pass --device cpu")
    if not has_kernels(device):
        parser.error(f"the compiled operators are needed: {info()[f'{device.type}_operators']}")
    cases = list(SHAPES)[:: 2 if arguments.quick else 1][: 2 if arguments.quick else None]
    clock = Clock(device, 5 if arguments.quick else 100)
    rows: list[Row] = []
    for case in cases:
        for terms in (3, 8) if arguments.quick else (1, 3, 8, 20):
            for dtype in (torch.float32, torch.bfloat16):
                rows += update_rows(clock, case, terms, dtype)
        rows += solver_rows(clock, case)
        write_report(rows, device, arguments.out)  # partial results, in case a later size fails
        print(f"{case}: {len(rows)} rows", flush=True)
    rows += sampling_rows(clock, 8 if arguments.quick else 256)
    write_report(rows, device, arguments.out)
    print(f"wrote {arguments.out.with_suffix('.md')} and {arguments.out.with_suffix('.csv')}")


if __name__ == "__main__":
    main()
