"""Lists of seeds as people write them."""

from __future__ import annotations

import re
from collections.abc import Sequence

_MOST_SEEDS = 100_000_000
_SEED_RANGE = re.compile(r"(-?\d+)(?:-(\d+))?")


def parse_seeds(text: str) -> list[int]:
    """Read a list of seeds such as ``"0-63,100"``.

    Parameters
    ----------
    text : str
        Comma-separated integers and inclusive ranges ``first-last``.

    Returns
    -------
    list of int
        The seeds in the order given; repetitions are kept.

    Raises
    ------
    ValueError
        If the text is empty, a part is not a number or a range, a range runs backward, or there are more than
        a hundred million seeds.

    Examples
    --------
    >>> parse_seeds("0-3,10")
    [0, 1, 2, 3, 10]
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = _SEED_RANGE.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"cannot read seeds from {text!r}: write integers and ranges such as '0-63,100'")
        first = int(match[1])
        last = first if match[2] is None else int(match[2])
        if last < first:
            raise ValueError(f"seed range {part.strip()!r} runs backward: write the smaller seed first")
        if len(seeds) + last - first >= _MOST_SEEDS:
            raise ValueError(f"{text!r} are more than {_MOST_SEEDS:,} seeds: write fewer")
        seeds.extend(range(first, last + 1))
    return seeds


def format_seeds(seeds: Sequence[int]) -> str:
    """Write seeds so that `parse_seeds` reads them back: runs become ranges.

    Examples
    --------
    >>> format_seeds([0, 1, 2, 3, 10])
    '0-3,10'
    """
    parts: list[str] = []
    start = 0
    for i in range(1, len(seeds) + 1):
        if i < len(seeds) and seeds[i] == seeds[i - 1] + 1:
            continue
        first, last = seeds[start], seeds[i - 1]
        run = range(first, last + 1)
        parts += [f"{first}-{last}"] if first >= 0 and len(run) > 1 else [str(seed) for seed in run]
        start = i
    return ",".join(parts)
