"""The text of numbers, columns and settings, the same in every form of a report."""

from __future__ import annotations

from typing import Any

from gas_ext.evaluation.measures import GROUPS, Measure
from gas_ext.evaluation.metrics import Estimate
from gas_ext.evaluation.results import LEVEL, Cell, Comparison

PLUS_MINUS = "\u00b1"
ALMOST = "\u2248"
ABSENT = "\u2013"


def short_heading(measure: Measure, comparison: Comparison) -> str:
    """Return the heading of a column; "FID" and "KID" only with Inception features."""
    inception = str(_features_of(measure, comparison).get("frechet_name", "")).startswith("FID")
    names = {"frechet": "FID" if inception else "Frechet", "kid": "KID" if inception else "kernel"}
    return names.get(measure.name, measure.short)


def heading(measure: Measure, comparison: Comparison) -> str:
    """Return the heading of a column outside of its group, with its unit, or features if several are used."""
    short = short_heading(measure, comparison)
    if measure.group == "sample":
        return f"{short} ({measure.unit})" if measure.unit else short
    features = _several_features(measure, comparison)
    return f"{short} to {measure.group}" + (f" ({features})" if features else "")


def group_headings(comparison: Comparison) -> dict[str, list[Measure]]:
    """Return the measured columns by the headings of their groups."""
    groups: dict[str, list[Measure]] = {}
    for measure in comparison.measures:
        groups.setdefault(_group_title(measure, comparison), []).append(measure)
    return groups


def _group_title(measure: Measure, comparison: Comparison) -> str:
    title = GROUPS[measure.group]
    if measure.group == "data" and comparison.reference is not None:
        title = f"to {comparison.reference['name']}"
    features = _several_features(measure, comparison) if measure.group != "sample" else ""
    return f"{title}, features of {features}" if features else title


def _features_of(measure: Measure, comparison: Comparison) -> dict[str, Any]:
    """Return the record of a measure's extractor: the first, unless the measure names another."""
    for described in comparison.settings["features"]:
        if measure.features in ("", described["extractor"]):
            found: dict[str, Any] = described
            return found
    return {}


def _several_features(measure: Measure, comparison: Comparison) -> str:
    """Return the name of a measure's extractor if there are several."""
    if len(comparison.settings["features"]) < 2:
        return ""
    return str(_features_of(measure, comparison)["extractor"])


def sections(comparison: Comparison) -> list[list[Cell]]:
    """Return the teachers, then the solvers by NFE."""
    judged = [[cell for cell in comparison.judged if cell.nfe == nfe] for nfe in comparison.nfes]
    return [section for section in (comparison.teachers, *judged) if section]


def value_text(measure: Measure, estimate: Estimate | None) -> str:
    """Return a value with the decimals of its column, or fewer if it is large.

    >>> from gas_ext.evaluation.measures import MEASURES
    >>> value_text(MEASURES["l1"], Estimate(0.02938))
    '0.0294'
    >>> value_text(MEASURES["frechet_to_data"], Estimate(123.456))
    '123.5'
    """
    return ABSENT if estimate is None else f"{estimate.value:.{_decimals(measure, estimate)}f}"


def _decimals(measure: Measure, estimate: Estimate) -> int:
    """Return the decimals of a column, or fewer if a value would have more than four significant digits."""
    whole = int(abs(estimate.value))
    return min(measure.digits, max(0, 4 - len(str(whole)))) if whole else measure.digits


def reach(estimate: Estimate | None) -> float | None:
    """Return half the width of the confidence interval, or None without one."""
    if estimate is None or not estimate.replicates:
        return None
    low, high = estimate.interval(LEVEL)
    return (high - low) / 2


def reach_text(measure: Measure, estimate: Estimate | None) -> str:
    """Return half the width of the confidence interval after a plus-minus sign, or "" without one."""
    half = reach(estimate)
    if estimate is None or half is None:
        return ""
    return f"{PLUS_MINUS}{half:.{_decimals(measure, estimate)}f}"


def milliseconds(cell: Cell) -> str:
    """Return the time per image with three significant digits.

    >>> from gas_ext.evaluation.judging import Numbers
    >>> import torch
    >>> milliseconds(Cell("a", "classical", "", Numbers(4, 12.345, {}, {}), torch.zeros(0)))
    '12.3'
    """
    time = cell.numbers.ms_per_image
    if time is None:
        return ABSENT
    digits = 2 if time < 10 else 1 if time < 100 else 0
    return f"{time:.{digits}f}"


def _timing_text(comparison: Comparison) -> str:
    """Describe how the times were measured."""
    timings = [cell.numbers.timing for cell in comparison.cells]

    def either(values: set[Any]) -> str:
        return " or ".join(map(str, sorted(values)))

    devices = either({device for timing in timings for device in timing["devices"]})
    threads = {count for timing in timings for count in timing["threads"]}
    sizes = either({timing["batch_size"] for timing in timings})
    text = f"median over full batches of {sizes} after a warm-up, on {devices}"
    if threads:
        text += f" with {either(threads)} thread{'' if threads == {1} else 's'}"
    return text


def settings_lines(comparison: Comparison) -> list[tuple[str, str]]:
    """Return the settings of a comparison as pairs of name and text."""
    import torch

    import gas_ext

    settings = comparison.settings
    teacher = settings["teacher"]
    guides = dict.fromkeys(f"{cell.description}, {cell.nfe} evaluations" for cell in comparison.teachers)
    lines = [
        ("Teacher", f"{teacher['name']}, sampled with {'; '.join(guides)}"),
        ("Weights", teacher["weights_hash"] or "not hashed"),
        ("Samples", f"{comparison.samples:,} per solver, seeds {comparison.seeds}"),
    ]
    if settings["guidance_scale"] is not None:
        lines.append(("Guidance", f"scale {settings['guidance_scale']:g}"))
    for features in settings["features"]:
        text = (
            f"{features['extractor']} ({features['size']} features), resize: {features['resize']}, "
            f"quantization: {features['quantization']}, "
            f"weights {features['weights_sha256'][:12] or 'unknown'}"
        )
        lines.append(("Features", text))
    if comparison.reference is not None:
        name, sha256, count = (comparison.reference[key] for key in ("name", "sha256", "count"))
        images = "" if count is None else f", {count:,} images"
        lines.append(("Real data", f"{name}{images}, SHA-256 {sha256[:12]}"))
    lines.append(("Time", _timing_text(comparison)))
    if comparison.groups:
        text = (
            f"{LEVEL:.0%} intervals over seeds, by a jackknife over {comparison.groups} groups; differences "
            "are paired by seed"
        )
        lines.append(("Uncertainty", text))
    precision = settings["autocast"] or settings["dtype"]
    lines.append(("Computed", f"{precision}, gas_ext {gas_ext.__version__}, torch {torch.__version__}"))
    return lines
