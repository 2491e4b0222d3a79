"""The floor: the least time in which the required bytes can move, measured on the same amount of memory.

A small compiled kernel (streams.cpp) reads and writes as many bytes in as many streams as the operation. The
floor is the fastest of several variants: stores through or past the cache, all streams at once or a few at a
time, one thread or all, and torch's copy of as many bytes.
"""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from measuring import Repeated, measure
from torch import Tensor

SOURCE = Path(__file__).with_name("streams.cpp")
LINE = 64  # bytes; the streams are aligned to them
FEW_STREAMS = 10  # more at a time are slower from DRAM on all tested processors
REPEATED_SECONDS = 1e-4  # shorter sweeps are repeated inside one call
THREADED_BYTES = 1 << 18  # less is finished before a second thread starts

Groups = Sequence[tuple[Sequence[Tensor], Sequence[Tensor]]]  # each: tensors read, tensors written


def build(folder: Path) -> Streams | None:
    """Compile the kernel into a folder; None without a suitable compiler."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return None
    library = folder / "streams.so"
    options = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
    command = [compiler, *options, str(SOURCE), "-o", str(library)]
    done = subprocess.run(command, check=False, capture_output=True)
    return Streams(library) if done.returncode == 0 else None


class Streams:
    """The compiled kernel. It shares torch's threads: both use the same OpenMP library."""

    def __init__(self, library: Path) -> None:
        self._sweep = ctypes.CDLL(str(library)).sweep
        self._sweep.restype = None

    def sweep(
        self, groups: Groups, *, past_cache: bool = False, passes: int = 1, threads: int = 1, repeats: int = 1
    ) -> Repeated:
        """Return a function that sweeps `repeats` times over the groups in turn.

        All tensors must have one size, a multiple of 64 bytes, and be aligned to 64 bytes.
        """
        reads = [tensor for read, _ in groups for tensor in read]
        writes = [tensor for _, written in groups for tensor in written]
        size = reads[0].nbytes
        for tensor in (*reads, *writes):
            if tensor.data_ptr() % LINE or tensor.nbytes != size or size % LINE:
                raise ValueError(f"The streams must have one size and be aligned, both to {LINE} bytes.")
        sources = (ctypes.c_void_p * len(reads))(*(tensor.data_ptr() for tensor in reads))
        targets = (ctypes.c_void_p * len(writes))(*(tensor.data_ptr() for tensor in writes))
        arguments = (
            *(sources, len(reads) // len(groups), targets, len(writes) // len(groups), len(groups)),
            *(ctypes.c_size_t(size // LINE), int(past_cache), passes, threads, repeats),
        )

        def call(_owner: object = groups) -> None:  # owns the tensors whose memory is swept
            self._sweep(*arguments)

        return Repeated(call, repeats)

    def floor(self, like: Tensor, reads: int, writes: int, groups: int = 1) -> Repeated:
        """Return the fastest way to read and write so many new tensors of this size, in groups by turns."""
        streams = reads + writes
        made = [[torch.ones_like(like) for _ in range(streams)] for _ in range(groups)]
        sides = [(tensors[:reads], tensors[reads:]) for tensors in made]
        few = -(-max(reads, writes) // FEW_STREAMS)
        threads = {1} if streams * like.nbytes < THREADED_BYTES else {1, torch.get_num_threads()}
        copies = Repeated(_copies(made), groups)
        repeats = max(1, int(REPEATED_SECONDS / measure(copies, 0.0, 3).median))
        repeats = -(-repeats // groups) * groups  # whole rounds over all groups
        candidates = [copies]
        for past_cache, passes, count in itertools.product((False, True), {1, few}, threads):
            candidates.append(
                self.sweep(sides, past_cache=past_cache, passes=passes, threads=count, repeats=repeats)
            )
        return min(candidates, key=lambda candidate: measure(candidate, 0.0, 7).least)


def _copies(groups: Sequence[Sequence[Tensor]]) -> Callable[[], None]:
    """Return a function that copies as many bytes with torch as the groups move: half read, half written."""
    pairs: list[tuple[Tensor, Tensor]] = []
    for tensors in groups:
        streams = [tensor.view(-1) for tensor in tensors]
        half = len(streams) // 2
        pairs += zip(streams[:half], streams[half : 2 * half], strict=True)
        if len(streams) % 2:
            odd = streams[-1]
            middle = odd.numel() // 2
            pairs.append((odd[:middle], odd[odd.numel() - middle :]))

    def call() -> None:
        for source, target in pairs:
            target.copy_(source)

    return call
