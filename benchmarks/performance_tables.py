"""The tables of docs/performance.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from results import HIDDEN, Results, Row, words

SMALL, LARGE, HUGE = [1, 3, 32, 32], [64, 3, 64, 64], [512, 3, 64, 64]
COMPILED = ("torch.compile", "unfused, torch.compile")


def seconds(value: float) -> str:
    """A time with three figures and its unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-6:.3g} us"


def times(value: float) -> str:
    """A factor with three figures."""
    return f"{value:.0f}x" if value >= 100 else f"{value:.3g}x"


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    body = ["| " + " | ".join(line) + " |" for line in lines]
    if not body:
        return "Not measured in this run."
    return "\n".join(["| " + " | ".join(header) + " |", "|---" * len(header) + "|", *body])


def comparison(rows: Sequence[Row], *more: tuple[str, Callable[[Row], str]]) -> str:
    """A table of rows: cases, medians, speedups over each peer, and share of the floor."""
    names = list(dict.fromkeys(name for row in rows for name in row.case if name not in HIDDEN))
    peers = list(dict.fromkeys(name for row in rows for name in row.peers))
    header = [*names, "median", *(_against(peer) for peer in peers), *(title for title, _ in more)]
    return markdown(header, [_line(row, names, peers) + [cell(row) for _, cell in more] for row in rows])


def _against(peer: str) -> str:
    return "share of the floor" if peer == "floor" else f"faster than {peer}"


def _line(row: Row, names: Sequence[str], peers: Sequence[str]) -> list[str]:
    case = [words("", row.case[name]).strip() if name in row.case else "" for name in names]
    return [*case, seconds(row.median), *(_ratio(row, peer) for peer in peers)]


def _ratio(row: Row, peer: str) -> str:
    if peer not in row.peers:
        return ""
    return f"{row.speedup(peer):.2f}" if peer == "floor" else times(row.speedup(peer))


def bandwidth(row: Row) -> str:
    """GB/s of a row that has its bytes."""
    return f"{row.case['bytes'] / row.median / 1e9:.1f}" if "bytes" in row.case else ""


def floor_bandwidth(row: Row) -> str:
    """GB/s of the row's floor."""
    floor = row.peers.get("floor")
    return f"{row.case['bytes'] / floor.median / 1e9:.1f}" if floor else ""


def outside(row: Row) -> str:
    """Share of time outside the network."""
    share = row.extra.get("share_outside_network")
    return "" if share is None else f"{share:.2%}"


def machine(results: Results) -> str:
    """Machine, date and versions of the run."""
    info = results.machine
    kernels, versions = info["kernels"], info["versions"]
    lines = [
        f"- {info['cpu'].get('brand_raw', info['machine'])}, {info['cpu'].get('count', '?')} processors, "
        f"last-level cache {info['last_level_cache'] >> 20} MiB; {info['system']} {info['release']}",
        f"- {info['threads']} threads; gas_ext {info['gas_ext']}, kernels "
        f"{kernels.get('build', {}).get('cpu_isa_in_use', 'not loaded')}",
        "- " + ", ".join(f"{name} {version}" for name, version in versions.items()),
        f"- {results.when[:10]}, {len(results.rows)} rows",
    ]
    if not info["full"]:
        lines.append("- **A short run, with too few rounds for conclusions.**")
    return "\n".join(lines)


def _share(value: float) -> str:
    return f"{value:.2f}"


def _percent(value: float) -> str:
    return f"{value:.2%}"


@dataclass(frozen=True)
class Target:
    """A value of some rows that must be at least, or at most, a limit."""

    text: str
    limit: float
    find: Callable[[Results], list[tuple[float, Row]]]
    show: Callable[[float], str] = _share
    at_least: bool = True

    def line(self, results: Results) -> list[str]:
        """The target, the worst value, its case, and whether the target is reached."""
        found = self.find(results)
        limit = ("at least " if self.at_least else "at most ") + self.show(self.limit)
        if not found:
            return [self.text, limit, "not measured", "", ""]
        worst, row = (min if self.at_least else max)(found, key=lambda pair: pair[0])
        reached = worst >= self.limit if self.at_least else worst <= self.limit
        return [self.text, limit, self.show(worst), row.label, "yes" if reached else "**no**"]


def _from_dram(terms: int) -> Callable[[Results], list[tuple[float, Row]]]:
    return lambda results: _against_floor(
        results.of("forward against the floor", size=HUGE, terms=terms, dtype="float32", cache="cold")
    )


def _in_cache(terms: int) -> Callable[[Results], list[tuple[float, Row]]]:
    """Warm rows that fit the cache, except the smallest, which measure the call, not memory."""

    def find(results: Results) -> list[tuple[float, Row]]:
        rows = results.of("forward against the floor", terms=terms, dtype="float32", cache="warm")
        room = 0.75 * results.machine["last_level_cache"]
        return _against_floor(row for row in rows if row.case["size"] != SMALL and row.case["bytes"] < room)

    return find


def _against_floor(rows: Iterable[Row]) -> list[tuple[float, Row]]:
    return [(row.speedup("floor"), row) for row in rows if "floor" in row.peers]


def _backward(results: Results) -> list[tuple[float, Row]]:
    rows = results.of("backward", dtype="float32", gradients="all")
    return _against_floor(row for row in rows if row.case["size"] != SMALL)


def _faster(peer: str, subject: str, **case: Any) -> Callable[[Results], list[tuple[float, Row]]]:
    return lambda results: [
        (row.speedup(peer), row) for row in results.of(subject, **case) if peer in row.peers
    ]


def _compiled(results: Results) -> list[tuple[float, Row]]:
    return [(row.speedup(peer), row) for row in results.rows for peer in COMPILED if peer in row.peers]


def _outside(subject: str, batch: int = 1) -> Callable[[Results], list[tuple[float, Row]]]:
    """Share of time outside the network, from a batch size."""
    return lambda results: [
        (row.extra["share_outside_network"], row)
        for row in results.of(subject)
        if row.case["size"][0] >= batch
    ]


def _memory(when: str) -> Callable[[Results], list[tuple[float, Row]]]:
    def find(results: Results) -> list[tuple[float, Row]]:
        rows = results.of("training solve")
        # To a hundredth: the coefficients, a few kilobytes, are not part of the history.
        return [(round(row.extra["memory"][when] / row.extra["memory"]["history"], 2), row) for row in rows]

    return find


def _step_seconds(results: Results) -> list[tuple[float, Row]]:
    return [(row.median, row) for row in results.of("step", size=SMALL)]


_UNFUSED = _faster("unfused", "forward", size=LARGE, terms=8, dtype="float32")
_PUBLIC_STEP = _faster("public code", "step", size=SMALL)
_SAMPLING = _outside("sample, embedded teacher")
_TRAINING = _outside("training, embedded teacher", batch=8)
_STORED = "training solve, stored for the backward pass, of the history"

TARGETS = [
    *(Target(f"forward from DRAM, {n} terms, of the floor", 0.85, _from_dram(n)) for n in (3, 8, 20)),
    *(Target(f"forward in cache, {n} terms, of the floor", 0.9, _in_cache(n)) for n in (3, 8, 20)),
    Target("backward, all gradients, of the floor", 0.8, _backward),
    Target("forward, 8 terms (order 4), against the unfused update", 10.0, _UNFUSED, times),
    Target("forward and backward against torch.compile, anywhere", 1.0, _compiled, times),
    Target("one step of a small image, all from Python", 15e-6, _step_seconds, seconds, at_least=False),
    Target("the same against the public code's step", 15.0, _PUBLIC_STEP, times),
    Target("sampling, outside the network", 0.01, _SAMPLING, _percent, at_least=False),
    Target("training, outside the network's passes", 0.03, _TRAINING, _percent, at_least=False),
    Target(_STORED, 1.0, _memory("forward"), at_least=False),
    Target("training solve, most at any time, of the history", 1.0, _memory("peak"), at_least=False),
]


def targets(results: Results) -> str:
    """All targets, with the worst case of each."""
    header = ["target", "limit", "worst value", "case", "reached"]
    return markdown(header, [target.line(results) for target in TARGETS])


def memory(results: Results) -> str:
    """Memory of training solves."""
    lines = []
    for row in results.of("training solve"):
        held = row.extra["memory"]
        history = held["history"]
        shares = [f"{held[name] / history:.2f}" for name in ("forward", "peak", "public code")]
        lines.append(
            [words("", row.case["size"]), str(row.case["steps"]), f"{history / 1e6:.1f} MB", *shares]
        )
    header = [
        "size",
        "steps",
        "history",
        "stored for the backward pass",
        "most at any time",
        "public code, most",
    ]
    return markdown(header, lines)


def scaling(results: Results) -> str:
    """Rows of each axis, with the growth from the row above."""
    lines = []
    for axis in dict.fromkeys(row.case["axis"] for row in results.of("scaling")):
        rows = sorted(results.of("scaling", axis=axis), key=lambda row: row.case["value"])
        for row, before in zip(rows, [None, *rows], strict=False):
            factor = "" if before is None else times(row.median / before.median)
            ratios = [_ratio(row, peer) for peer in ("public code", "floor")]
            lines.append([axis, str(row.case["value"]), seconds(row.median), factor, *ratios])
    header = ["axis", "value", "median", "of the row above", "faster than public code", "share of the floor"]
    return markdown(header, lines)


def _plain(*subjects: str) -> Callable[[Results], str]:
    return lambda results: comparison([row for subject in subjects for row in results.of(subject)])


def _with(subject: str, *more: tuple[str, Callable[[Row], str]]) -> Callable[[Results], str]:
    return lambda results: comparison(results.of(subject), *more)


OUTSIDE = ("outside the network", outside)
BANDWIDTHS = (("GB/s", bandwidth), ("floor, GB/s", floor_bandwidth))

SECTIONS: dict[str, Callable[[Results], str]] = {
    "machine": machine,
    "targets": targets,
    "forward": _plain("forward"),
    "floor": _with("forward against the floor", *BANDWIDTHS),
    "fresh memory": _plain("forward into fresh memory"),
    "backward": _with("backward", *BANDWIDTHS),
    "step": _plain("step"),
    "sample": _plain("sample, free network"),
    "sample with teacher": _with("sample, embedded teacher", OUTSIDE),
    "training": _plain("training, free network"),
    "training with teacher": _with("training, embedded teacher", OUTSIDE),
    "memory": memory,
    "baking": _plain("baking", "baking, backward"),
    "reading": _plain("reading teacher samples"),
    "metrics": _plain("metrics"),
    "scaling": scaling,
}
