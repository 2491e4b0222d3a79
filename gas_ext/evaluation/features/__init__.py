"""Networks that map images to feature vectors, for distances between distributions of images."""

from gas_ext._utils.noise import to_bytes
from gas_ext.evaluation.features.catalog import feature_names, load_features, register_features
from gas_ext.evaluation.features.extractor import FeatureExtractor, collect_features
from gas_ext.evaluation.features.inception import INCEPTION_SHA256, INCEPTION_URL, load_inception

__all__ = [
    "INCEPTION_SHA256",
    "INCEPTION_URL",
    "FeatureExtractor",
    "collect_features",
    "feature_names",
    "load_features",
    "load_inception",
    "register_features",
    "to_bytes",
]
