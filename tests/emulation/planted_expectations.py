"""What the planted kernels compute when correct, and how each bug is caught.

In a plain build a bug ends in an error or in a wrong result for some order of threads (WRONG); the
sanitizers of the other builds stop the process with a report.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

WRONG = "wrong result"
HEAP, GLOBAL, SEGV = "heap-buffer-overflow", "global-buffer-overflow", "SEGV"
RACE = "ThreadSanitizer: data race"


@dataclass(frozen=True)
class Planted:
    """`caught` maps a build to the text of its error; `expected` the input to the correct output."""

    inputs: int
    expected: Callable[[np.ndarray], np.ndarray]
    caught: dict[str, str] = field(default_factory=dict)

    def values(self) -> np.ndarray:
        # Small integers: sums are exact in every order.
        return np.random.default_rng(self.inputs).integers(1, 100, self.inputs).astype(np.float32)


def total(x: np.ndarray) -> np.ndarray:
    return x.sum(keepdims=True)


def next_value(x: np.ndarray) -> np.ndarray:
    """Value of the next lane; the last keeps its own."""
    return np.append(x[1:], x[-1])


def indices(count: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: np.arange(count, dtype=np.float32)


NOT_REACHED = "a barrier that not all threads reach"
LAUNCH = "CUDA error: invalid configuration argument"

PLANTED = {
    "missing_barrier": Planted(1024, lambda x: x.reshape(4, 256).sum(axis=1), {"plain": WRONG, "tsan": RACE}),
    "missing_second_barrier": Planted(
        1024, lambda x: x.reshape(4, 256)[:, ::-1].ravel(), {"plain": WRONG, "tsan": RACE}
    ),
    "warp_in_step": Planted(32, total, {"plain": WRONG, "tsan": RACE}),
    "divergent_barrier": Planted(256, total, {"plain": NOT_REACHED}),
    "two_barriers": Planted(256, lambda x: x[::-1], {"plain": "threads wait at different barriers"}),
    "barrier_after_exit": Planted(200, lambda x: x[::-1], {"plain": NOT_REACHED}),
    "race_in_global": Planted(256, lambda x: x[::2], {"plain": WRONG, "tsan": RACE}),
    "race_in_shared": Planted(256, lambda x: x.reshape(8, 32).sum(axis=0), {"tsan": RACE}),
    "write_past_global": Planted(
        1024, lambda x: x, {"plain": "bytes before or behind a tensor were written", "asan": HEAP}
    ),
    "read_past_global": Planted(1024, next_value, {"asan": HEAP}),
    "write_past_shared": Planted(256, lambda x: np.append(0, x[:-1]), {"asan": GLOBAL}),
    "index_past_shared": Planted(
        256, lambda x: x, {"plain": "array index 8 out of bounds", "asan": "index 8 out of bounds"}
    ),
    "misaligned_load": Planted(
        256, lambda x: x[1:253], {"plain": "misaligned access", "asan": "misaligned address"}
    ),
    "misaligned_store": Planted(
        128, lambda x: x[:127], {"plain": "misaligned access", "asan": "misaligned address"}
    ),
    "null_pointer": Planted(256, lambda x: x, {"asan": "null pointer|" + SEGV}),
    "uninitialized_shared": Planted(8, total, {"plain": WRONG}),
    "uninitialized_global": Planted(256, lambda x: x, {"plain": WRONG}),
    "exited_lane": Planted(20, total, {"plain": "names lane [0-9]+, which has exited"}),
    "lane_at_barrier": Planted(20, total, {"plain": "names lane [0-9]+, which waits at a barrier"}),
    "lane_not_in_its_mask": Planted(
        32, next_value, {"plain": "does not name the calling lane|lane 16, which is not in the mask"}
    ),
    "source_not_in_mask": Planted(16, next_value, {"plain": "reads lane 16, which is not in the mask"}),
    "mask_without_threads": Planted(
        16, next_value, {"plain": "names lane 16, which the block does not have"}
    ),
    "inter_block": Planted(8, np.cumsum, {"plain": WRONG, "tsan": RACE}),
    "reduction_tail": Planted(1000, total, {"plain": WRONG}),
    "reduction_halves": Planted(7, total, {"plain": WRONG}),
    "block_too_large": Planted(1024, indices(1024), {"plain": LAUNCH}),
    "block_too_deep": Planted(1, indices(1), {"plain": LAUNCH}),
    "grid_too_high": Planted(1, indices(1), {"plain": LAUNCH}),
    "grid_empty": Planted(1, indices(1), {"plain": LAUNCH}),
}
