"""The floor: the time in which the bytes that must move can move, measured on the same amount of memory.

A small compiled kernel (streams.cpp) reads and writes as many bytes, of as many streams, as the operation. It
is tried with stores through and past the cache, with all streams side by side and a few at a time, and with
one thread and all; torch's own copy of as many bytes is tried too. The fastest is the floor.
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
FEW_STREAMS = 10  # more at a time are slower from DRAM on the processors seen
REPEATED_SECONDS = 1e-4  # shorter sweeps are repeated inside one call
THREADED_BYTES = 1 << 18  # less is over before a second thread has begun

Groups = Sequence[tuple[Sequence[Tensor], Sequence[Tensor]]]  # each: tensors read, tensors written


def build(folder: Path) -> Streams | None:
    """Compile the kernel into a folder; None if there is no compiler that can."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return None
    library = folder / "streams.so"
    options = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
    command = [compiler, *options, str(SOURCE), "-o", str(library)]
    done = subprocess.run(command, check=False, capture_output=True)
    return Streams(library) if done.returncode == 0 else None


class Streams:
    """The compiled kernel. Its threads are torch's: both use the OpenMP library that is loaded."""

    def __init__(self, library: Path) -> None:
        self._sweep = ctypes.CDLL(str(library)).sweep
        self._sweep.restype = None

    def sweep(
        self, groups: Groups, *, past_cache: bool = False, passes: int = 1, threads: int = 1, repeats: int = 1
    ) -> Repeated:
        """Return a function that sweeps `repeats` times over the groups in turn.

        All tensors are of one size, a multiple of 64 bytes, and aligned to as many.
        """
        reads = [tensor for read, _ in groups for tensor in read]
        writes = [tensor for _, written in groups for tensor in written]
        size = reads[0].nbytes
        for tensor in (*reads, *writes):
            if tensor.data_ptr() % LINE or tensor.nbytes != size or size % LINE:
                raise ValueError(f"The streams must be of one size and aligned, both to {LINE} bytes.")
        sources = (ctypes.c_void_p * len(reads))(*(tensor.data_ptr() for tensor in reads))
        targets = (ctypes.c_void_p * len(writes))(*(tensor.data_ptr() for tensor in writes))
        arguments = (
            *(sources, len(reads) // len(groups), targets, len(writes) // len(groups), len(groups)),
            *(ctypes.c_size_t(size // LINE), int(past_cache), passes, threads, repeats),
        )

        def call(_kept: object = groups) -> None:  # the tensors are kept, so that their memory stays
            self._sweep(*arguments)

        return Repeated(call, repeats)

    def floor(self, like: Tensor, reads: int, writes: int, groups: int = 1) -> Repeated:
        """Return the fastest way of reading and writing so many tensors of this size.

        The tensors are the floor's own. With several groups of them, each is visited in turn.
        """
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
    """Return a function in which torch copies as many bytes as the groups move: half read, half written."""
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
