"""Lists of seeds, stored as ranges: they take no more memory than their text."""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import overload

MOST_SEEDS = 10_000_000
_PART = re.compile(r"\s*(-?\d{1,20})(?:-(\d{1,20}))?\s*(,|\Z)")
_LIMIT = 2**63 - 1


class SeedList(Sequence[int]):
    """A sequence of 64-bit integers, stored as runs of consecutive ones (ranges of step 1).

    >>> SeedList([range(3), range(10, 12)])[1:4]
    [1, 2, 10]
    """

    def __init__(self, runs: Iterable[range] = ()) -> None:
        self._starts, self._ends = array("q"), array("q")  # first seed of each run; index after its last
        for run in runs:
            count = len(self)
            if count and run.start == self[-1] + 1:
                self._ends[-1] += len(run)
            elif run:
                self._starts.append(run.start)
                self._ends.append(count + len(run))

    @classmethod
    def of(cls, seeds: Iterable[int]) -> SeedList:
        """Return integers as a list of seeds; a SeedList is returned as it is."""
        if isinstance(seeds, SeedList):
            return seeds
        if isinstance(seeds, range) and seeds.step == 1:
            return cls([seeds])
        return cls(range(seed, seed + 1) for seed in seeds)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(self.runs())

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> SeedList: ...

    def __getitem__(self, index: int | slice) -> int | SeedList:
        indices = range(len(self))[index]
        if isinstance(indices, int):
            return next(self._between(indices, indices + 1)).start
        if indices.step == 1:
            return SeedList(self._between(indices.start, indices.stop))
        return SeedList.of(self[i] for i in indices)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str) or len(other) != len(self):
            return False
        other = SeedList.of(other)
        return (self._starts, self._ends) == (other._starts, other._ends)

    def __hash__(self) -> int:
        return hash(tuple(self._starts))

    def __repr__(self) -> str:
        return repr(list(self)) if len(self) <= 20 else f"<{len(self):,} seeds, the first {self[0]}>"

    def runs(self) -> Iterator[range]:
        """Yield the runs of consecutive seeds, each as long as possible."""
        return self._between(0, len(self))

    def _between(self, index: int, stop: int) -> Iterator[range]:
        """Yield the runs, or parts of them, from one index to another."""
        run = bisect_right(self._ends, index)
        while index < stop:
            end = min(self._ends[run], stop)
            first = self._starts[run] + index - (self._ends[run - 1] if run else 0)
            yield range(first, first + end - index)
            index, run = end, run + 1


def parse_seeds(text: str) -> SeedList:
    """Read comma-separated integers and inclusive ranges, such as ``"0-63,100"``, in the order given.

    Repeated seeds are preserved. Raises ValueError for anything else, for a range that runs backward, for
    numbers of more than 64 bits, and for more than ten million seeds.

    >>> parse_seeds("0-3,10")
    [0, 1, 2, 3, 10]
    """
    return SeedList(_ranges(text))


def _ranges(text: str) -> Iterator[range]:
    shown = repr(text) if len(text) <= 80 else f"{text[:77]!r}..."
    position = count = 0
    comma = ","
    while comma:
        match = _PART.match(text, position)
        if match is None:
            raise ValueError(f"Cannot read seeds from {shown}; write integers and ranges such as '0-63,100'.")
        first, comma, position = int(match[1]), match[3], match.end()
        last = first if match[2] is None else int(match[2])
        if last < first:
            raise ValueError(f"Seed range '{first}-{last}' runs backward; write the smaller seed first.")
        count += last - first + 1
        if count > MOST_SEEDS:
            raise ValueError(f"{shown} are more than {MOST_SEEDS:,} seeds; write fewer.")
        if first < -_LIMIT or last > _LIMIT:
            raise ValueError(f"{shown} has a seed of more than 64 bits; write smaller seeds.")
        yield range(first, last + 1)


def format_seeds(seeds: Sequence[int]) -> str:
    """Return seeds as text for `parse_seeds`; runs become ranges.

    >>> format_seeds([0, 1, 2, 3, 10])
    '0-3,10'
    """
    parts: list[str] = []
    for run in SeedList.of(seeds).runs():
        parts += [f"{run[0]}-{run[-1]}"] if run[0] >= 0 and len(run) > 1 else map(str, run)
    return ",".join(parts)


def common_seeds(ours: Sequence[int], theirs: Sequence[int]) -> tuple[int, int | None]:
    """Return how many different seeds two lists have in common, and the smallest of them.

    >>> common_seeds(range(10), [12, 9, 8, 9])
    (2, 8)
    """
    count, first = 0, None
    waiting = _disjoint(theirs)
    other = next(waiting, None)
    for run in _disjoint(ours):
        while other is not None and other.start < run.stop:
            common = range(max(run.start, other.start), min(run.stop, other.stop))
            if common:
                count += len(common)
                first = common.start if first is None else first
            if other.stop > run.stop:
                break
            other = next(waiting, None)
    return count, first


def _disjoint(seeds: Sequence[int]) -> Iterator[range]:
    """Yield the different seeds in increasing order, as ranges."""
    reached = -_LIMIT
    for run in sorted(SeedList.of(seeds).runs(), key=lambda run: run.start):
        part = range(max(run.start, reached), run.stop)
        reached = max(reached, run.stop)
        if part:
            yield part
