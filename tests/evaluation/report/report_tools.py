"""A comparison with known numbers."""

import math

import torch

from gas_ext.evaluation.entries import LeftOut
from gas_ext.evaluation.features import FeatureExtractor
from gas_ext.evaluation.judging import Numbers
from gas_ext.evaluation.metrics import Estimate
from gas_ext.evaluation.results import Cell, Comparison, mark_cells

FEATURES = FeatureExtractor("toy", 4, lambda images: images, weights_hash="ab" * 32).describe()
TIMING = {"batches": 4, "batch_size": 50, "devices": ["cpu"], "threads": [1]}


def estimate(value, spread):
    return Estimate(value, tuple(value + spread * sign for sign in (-1, 1, -1, 1)))


def make_cell(label, kind, nfe, number, shape=(1, 8, 8), **values):
    shown = (torch.arange(12 * math.prod(shape)) * 7 + 40 * number).remainder(256).to(torch.uint8)
    teacher, folder = ("", "cells/teacher") if kind == "teacher" else ("cells/teacher", f"cells/{number}")
    numbers = Numbers(nfe, 2.0 * nfe, TIMING, {key: estimate(*pair) for key, pair in values.items()})
    return Cell(label, kind, f"about {label}", numbers, shown.reshape(12, *shape), folder, teacher)


def make_comparison(label="mine", shape=(1, 8, 8), further=False):
    """With `further`, the learned solver of 4 evaluations is also measured in other features."""
    values = [
        ("teacher", "teacher", 20, {"frechet_to_data": (0.1, 0.01)}),
        ("unipc-3", "classical", 4, {"l1": (0.2, 0.001), "psnr": (20, 0.1), "frechet_to_data": (0.9, 0.1)}),
        ("unipc-3", "classical", 6, {"l1": (0.1, 0.001), "psnr": (24, 0.1), "frechet_to_data": (0.4, 0.1)}),
        (label, "learned", 4, {"l1": (0.05, 0.001), "psnr": (30, 0.1), "frechet_to_data": (0.2, 0.02)}),
        (label, "learned", 6, {"l1": (0.04, 0.001), "psnr": (24.05, -0.1)}),
    ]
    cells = [
        make_cell(name, kind, nfe, number, shape, **pairs)
        for number, (name, kind, nfe, pairs) in enumerate(values)
    ]
    if further:
        cells[3].numbers.estimates["frechet_to_data@other"] = estimate(0.7, 0.01)
    settings = {
        "teacher": {"name": "toy", "family": "custom", "weights_hash": "cd" * 32},
        "guidance_scale": None,
        "autocast": None,
        "dtype": "float32",
        "batch_size": 50,
        "features": [FEATURES, {**FEATURES, "extractor": "other"}] if further else [FEATURES],
        "perceptual": False,
    }
    reference = {"name": "real images", "sha256": "ef" * 32, "count": 60_000}
    left_out = [LeftOut("edm", 4, "edm takes an odd number of evaluations.")]
    return Comparison("Toy comparison", settings, "0-199", 200, mark_cells(cells), reference, left_out, 4)
