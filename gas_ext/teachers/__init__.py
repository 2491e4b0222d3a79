"""Networks to sample from: the embedded demo teacher."""

from gas_ext.teachers.demo import (
    DemoFeatures,
    DemoTeacher,
    load_demo_features,
    load_demo_statistics,
    load_demo_teacher,
)
from gas_ext.teachers.demo_network import DemoNetwork, DemoNetworkConfig

__all__ = [
    "DemoFeatures",
    "DemoNetwork",
    "DemoNetworkConfig",
    "DemoTeacher",
    "load_demo_features",
    "load_demo_statistics",
    "load_demo_teacher",
]
