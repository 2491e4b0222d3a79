"""A small network with images and latents, and comparisons of its solvers."""

import torch

from gas_ext import Denoiser, NoiseSchedule
from gas_ext.evaluation import compare
from gas_ext.evaluation.features import FeatureExtractor
from gas_ext.solvers.registry import build_solver

SCHEDULE = NoiseSchedule.vp_linear()
SHAPE = (1, 4, 4)


def network(x, t, condition):
    """A smooth, nonlinear prediction of the clean sample, which a few steps integrate badly."""
    level = SCHEDULE.alpha(t).to(x.dtype)
    return torch.tanh(level * x + 0.3 * torch.roll(x, 1, -1)) * (0.3 + 0.7 * level)


def make_denoiser(function=network, **options):
    return Denoiser.from_callable(
        function, schedule=SCHEDULE, prediction_type="sample", sample_shape=SHAPE, name="toy", **options
    )


def make_features():
    return FeatureExtractor(
        "corner", 4, lambda images: images[:, 0, :2, :2].flatten(1), feature_maps=lambda images: [images]
    )


def run_comparison(folder, solvers=("ddim", "dpm++-2"), nfe=(2, 3), count=60, **options):
    """Compare on `count` seeds from 100 on."""
    denoiser = options.pop("denoiser", None) or make_denoiser()
    teacher = build_solver("dpm++-3", SCHEDULE, 12)
    defaults = {"teacher": teacher, "seeds": range(100, 100 + count), "batch_size": 20}
    return compare(denoiser, solvers, nfe, folder, **{**defaults, **options})
