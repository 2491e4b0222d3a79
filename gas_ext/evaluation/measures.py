"""The columns of a comparison: what each is called, and which direction is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

# What is compared with what: headings of groups of columns.
GROUPS = {
    "sample": "to the teacher's sample of the same seed",
    "teacher": "to all samples of the teacher",
    "data": "to real data",
}


@dataclass(frozen=True)
class Measure:
    """One column of a comparison."""

    name: str  # such as "frechet"
    group: str  # a key of `GROUPS`
    short: str  # heading of the column, below that of its group
    explanation: str
    higher_is_better: bool = False
    digits: int = 4  # decimals in tables
    unit: str = ""
    logarithmic: bool = True  # axis in plots
    features: str = ""  # its extractor, if that is not the first

    @property
    def base(self) -> str:
        """Its key without the features: "l1", "frechet_to_data"."""
        return measure_key(self.group, self.name)

    @property
    def key(self) -> str:
        """Name in files: "l1", "frechet_to_data", "frechet_to_data@efficientnet-lite0"."""
        return measure_key(self.group, self.name, self.features)

    @property
    def better(self) -> str:
        """Which direction is better: "higher" or "lower"."""
        return "higher" if self.higher_is_better else "lower"

    @property
    def title(self) -> str:
        """Heading that names its group."""
        return self.short if self.group == "sample" else f"{self.short} to {self.group}"


def measure_key(group: str, name: str = "", features: str = "") -> str:
    """Return the name of a measure in files, or without its name that of a group of them.

    >>> measure_key("sample", "l1"), measure_key("data", "kid"), measure_key("data", features="mine")
    ('l1', 'kid_to_data', 'data@mine')
    """
    base = group if not name else name if group == "sample" else f"{name}_to_{group}"
    return f"{base}@{features}" if features else base


def _of_samples() -> list[Measure]:
    of_seed = GROUPS["sample"]
    psnr = f"peak signal-to-noise ratio {of_seed}, mean over the images"
    perceptual = "distance in the feature maps of the features' network, to the same sample"
    return [
        Measure("l1", "sample", "L1", f"mean absolute difference {of_seed}"),
        Measure("l2", "sample", "L2", f"mean squared difference {of_seed}", digits=5),
        Measure("psnr", "sample", "PSNR", psnr, True, digits=2, unit="dB", logarithmic=False),
        Measure("perceptual", "sample", "perceptual", perceptual),
    ]


def _of_distributions(group: str) -> list[Measure]:
    theirs = "the teacher's samples" if group == "teacher" else "the real images"
    kernel = f"kernel distance of the features to those of {theirs}; unbiased, so it may be negative"
    fractions = {
        "precision": f"fraction of the samples that are close to {theirs}",
        "recall": f"fraction of {theirs} that are close to the samples",
        "density": f"number of balls around {theirs} that contain a sample, over k, mean over the samples",
        "coverage": f"fraction of the balls around {theirs} that contain a sample",
    }
    return [
        Measure("frechet", group, "Frechet", f"Frechet distance of the features to those of {theirs}"),
        Measure("kid", group, "KID", kernel, digits=5, logarithmic=False),
        *(
            Measure(name, group, name, explanation, True, digits=3, logarithmic=False)
            for name, explanation in fractions.items()
        ),
    ]


MEASURES = {
    measure.key: measure
    for measure in (*_of_samples(), *_of_distributions("teacher"), *_of_distributions("data"))
}


def in_order(keys: Sequence[str]) -> list[Measure]:
    """Return measures in the order of tables: by group, then by features, then as in `MEASURES`.

    >>> [measure.key for measure in in_order(["l1", "kid_to_data", "kid_to_data@b", "frechet_to_data"])]
    ['l1', 'frechet_to_data', 'kid_to_data', 'kid_to_data@b']
    """
    parts = [key.partition("@") for key in dict.fromkeys(keys)]
    measures = [replace(MEASURES[base], features=features) for base, _, features in parts]
    features = list(dict.fromkeys(["", *(measure.features for measure in measures)]))
    groups, names = list(GROUPS), list(MEASURES)
    return sorted(
        measures, key=lambda m: (groups.index(m.group), features.index(m.features), names.index(m.base))
    )
